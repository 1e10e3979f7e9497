# The recipe of +experiment=tiny at a size for one GPU, without network, saving asynchronously; then its export.
Q="recipe._target_=megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config model.hidden_size=512 model.ffn_hidden_size=1536 model.num_attention_heads=8 model.num_query_groups=2 model.kv_channels=64 megatron.model.num_layers=6 train.seq_length=1024 train.micro_batch_size=8 train.global_batch_size=32 optimizer.lr=2e-3 optimizer.min_lr=2e-4 scheduler.lr_warmup_iters=5 scheduler.lr_wsd_decay_iters=10 train.train_iters=40 train.eval_interval=20 train.eval_iters=4 logger.log_interval=5"
run qwen $Q checkpoint.save_interval=10 megatron.checkpoint.async_save=true
ls "$K/qwen/checkpoints" "$K/qwen/checkpoints/"iter_*40 | tr '\n' ' '
say "export qwen"
timeout 120 python3 -c "
from pathlib import Path
from nano3.training.export import export
print(export(Path('$K/qwen'), Path('$K/hf_qwen')))" > "$OUT/export_qwen.log" 2>&1; echo "rc=$?"; tail -2 "$OUT/export_qwen.log" | cut -c1-300
