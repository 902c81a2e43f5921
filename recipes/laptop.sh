#!/bin/sh
# The whole story on a laptop, in under 15 minutes on 2 cores: tokenizer, pre-train, generate,
# quantise, fine-tune, distil.
#
#     sh recipes/laptop.sh DATA [OUT]
#
# DATA: a folder with shakespeare/input.txt (text of any kind will do) and sst/stsa.binary.{train,
# dev,test} (lines of "0 a bad film" and "1 a good film"). OUT: default runs/laptop. Run it again
# after an interruption: each training goes on where it was.
set -eu
data=${1:?"usage: sh recipes/laptop.sh DATA [OUT]"}
out=${2:-runs/laptop}
mkdir -p "$out"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. A vocabulary of 1,500 tokens, learned from the plays"
[ -d "$out/tokenizer" ] || chumoku tokenizer train "$data/shakespeare/input.txt" \
    --kind byte-bpe --vocab-size 1500 --output "$out/tokenizer"

say "2. A LLaMA shape of 0.93 million parameters learns to go on with them"
chumoku train laptop --data "$data" --output "$out/bard" --model.tokenizer="$out/tokenizer"

say "3. It is quantised to 8 bits, in one file, and writes"
chumoku models convert "$out/bard" "$out/bard.gguf" --type Q8_0
chumoku generate "ROMEO:" --model "$out/bard.gguf" --max-new-tokens 60 --seed 1

say "4. MiniLM is fine-tuned: is a sentence of a film review positive?"
chumoku train sst2 --data "$data" --output "$out/sst2" --data.limit=3000 --training.epochs=1

say "5. A student of half its depth learns from it"
chumoku train distil-sst2 --data "$data" --output "$out/student" --data.limit=3000 \
    --model.student_of="$out/sst2" --task.teacher="$out/sst2" --training.epochs=2
chumoku classify "A film that one is glad to have seen." --model "$out/student"

say "All of it lies in $out"
