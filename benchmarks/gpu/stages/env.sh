# What this machine is.
{ python3 -V; nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; nproc; free -g | head -2 | tail -1; ldd --version | head -1
  python3 -m pip list 2>/dev/null | grep -iE "^(torch|triton|transformers|tokenizers|numpy|nvidia-cudnn-cu13|nvidia-nccl-cu13) "
  (cd "$K/site" 2>/dev/null && ls -d megatron_*.dist-info transformer_engine*.dist-info mamba_ssm*.dist-info causal_conv1d*.dist-info nvidia_*.dist-info); } > "$OUT/environment.txt" 2>&1
head -5 "$OUT/environment.txt"
