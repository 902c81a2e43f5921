"""Small trained additions to a model that stays as it is: LoRA and its kin, as tree walks."""
