# A whole run of `nano3.pretrain train=one_hopper` with the 1.2 B model, natural routing on real data: tokens/s as the run itself logs them,
# and how long it stands still for two saves of the size of a real model (about 17 GB each) in the background.
say whole; W=$K/whole; rm -rf "$W"
timeout -s ABRT -k 5 "${WHOLE_LIMIT:-260}" python3 -X faulthandler -m nano3.pretrain model=nemotron_3_nano_1b train=one_hopper data_blend=sample \
  run.data="$DATA" run.output_dir="$W" run.name=whole train.train_iters="${WHOLE_STEPS:-80}" train.eval_interval=0 checkpoint.save_interval="$((${WHOLE_STEPS:-80} / 2))" \
  checkpoint.keep_last=1 scheduler.lr_warmup_iters=10 scheduler.lr_wsd_decay_iters=20 optimizer.lr=1e-4 logger.log_interval=5 > "$OUT/whole.log" 2>&1
echo "WHOLE rc=$?" | tee -a "$OUT/whole.log"; run=$(find "$W" -name metrics.jsonl -printf '%h\n' | head -1)
[ -n "$run" ] || { tail -5 "$OUT/whole.log"; return; }
du -sm "$run"/checkpoints/* 2>/dev/null | tee -a "$OUT/whole.log"; cp "$run/metrics.jsonl" "$OUT/whole.jsonl"; tail -c 200000 "$run"/logs/rank_0.log > "$OUT/whole_rank_0.log"
python3 -m nano3 report "$run" 2>&1 | tee -a "$OUT/whole.log" | tail -25
rm -rf "$W"
