# Train a little, export, compare with transformers, generate, and start again from the exported weights as a Slurm rank would.
A="$MICRO scheduler.lr_wsd_decay_iters=10"
[ -d "$K/undisturbed/checkpoints" ] || run undisturbed $A train.train_iters=40 train.eval_interval=20 train.eval_iters=4 checkpoint.save_interval=20
say export
timeout 120 python3 -c "
import argparse, sys
from nano3.tools import export
parser = argparse.ArgumentParser(); export.add_arguments(parser)
sys.exit(export.run(parser.parse_args(sys.argv[1:])))" "$K/undisturbed" --output "$K/hf" > "$OUT/export.log" 2>&1; echo "rc=$?"; tail -3 "$OUT/export.log" | cut -c1-300; ls -la "$K/hf"
say compare
timeout 150 python3 benchmarks/gpu/compare.py "$K/undisturbed" "$K/data" "$K/hf" > "$OUT/compare.log" 2>&1; echo "rc=$?"; grep -E "^COMPARE|Error" "$OUT/compare.log" | tail -2 | cut -c1-1600
export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29577
run from_hf $A train.train_iters=12 train.eval_interval=0 logger.log_interval=1 checkpoint.save_interval=0 megatron.checkpoint.pretrained_checkpoint="$K/hf" optimizer.lr=1e-5 optimizer.min_lr=1e-6 scheduler.lr_wsd_decay_iters=5
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
