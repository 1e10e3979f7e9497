# Start from Hugging Face weights as a Slurm rank would, train, export, compare with transformers, generate text.
python3 benchmarks/gpu/fresh.py conf/model/nemotron_3_nano_micro.yaml "$DATA" "$K/fresh" > "$OUT/fresh.log" 2>&1; echo "fresh rc=$?"
RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29577 LIMIT=330 run from_hf $MICRO train.train_iters=40 train.eval_interval=20 train.eval_iters=4 logger.log_interval=1 checkpoint.save_interval=20 scheduler.lr_wsd_decay_iters=10 megatron.checkpoint.pretrained_checkpoint="$K/fresh"
say compare
timeout 150 python3 benchmarks/gpu/compare.py "$K/from_hf" "$DATA" "$K/hf" "$K/fresh" > "$OUT/compare.log" 2>&1; echo "compare rc=$?"; grep -E "^COMPARE|^EXPORT|Error|Failure" "$OUT/compare.log" | tail -3 | cut -c1-1800
