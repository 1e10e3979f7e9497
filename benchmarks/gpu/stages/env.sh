# What this machine is.
{ python3 -V; nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; nproc; free -g | head -2 | tail -1; ldd --version | head -1
  python3 -m pip list 2>/dev/null | grep -iE "^(torch|triton|transformers|tokenizers|numpy|nvidia-cudnn-cu13|nvidia-nccl-cu13) "
  (cd "$K/site" 2>/dev/null && ls -d megatron_*.dist-info transformer_engine*.dist-info mamba_ssm*.dist-info causal_conv1d*.dist-info nvidia_*.dist-info); } > "$OUT/environment.txt" 2>&1
head -5 "$OUT/environment.txt"
# Whether the allocator takes what a recipe's env_vars say when torch has been imported before, as it has when a recipe is called.
python3 -c "
import os, torch
os.environ['PYTORCH_CUDA_ALLOC_CONF'] = 'expandable_segments:True'
torch.zeros(1, device='cuda')
print('expandable segments, set after the import of torch:', torch.cuda.memory._snapshot()['allocator_settings'].get('expandable_segments'))" 2>&1 | tail -1 | tee -a "$OUT/environment.txt"
