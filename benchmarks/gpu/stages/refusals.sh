# What is wrong is refused before CUDA is touched, in seconds.
run typo $MICRO megatron.model.recompute_granularityy=full megatron.ddp.bucket_size=abc megatron.trian.x=1
mkdir -p "$K/other"; cp "$K/data/tokenizer/tokenizer.json" "$K/other/"; echo >> "$K/other/tokenizer.json"
run wrong_tokenizer $MICRO megatron.tokenizer.tokenizer_model="$K/other"
rm -rf "$K/broken"; cp -r "$K/data" "$K/broken"; rm "$K/broken/blend.json"; DATA=$K/broken run missing_blend $MICRO
cp "$K/data/blend.json" "$K/broken/"; python3 - "$K/broken/blend.json" <<'P'
import json, sys
blend = json.load(open(sys.argv[1])); blend["valid"] = []; json.dump(blend, open(sys.argv[1], "w"))
P
DATA=$K/broken run empty_valid $MICRO
