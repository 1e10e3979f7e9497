# Each change alone, from the most promising one on; VARIANTS picks some.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
declare -A CHANGE=(
  [mbs16]="train.micro_batch_size=16"
  [mbs8]="train.micro_batch_size=8"
  [mbs4_recipe]="train.micro_batch_size=4 megatron.model.recompute_granularity=selective megatron.model.recompute_modules=[moe,layernorm]"
  [router_fusion]="megatron.model.moe_router_fusion=true"
  [te_cross_entropy]="megatron.model.cross_entropy_fusion_impl=te"
  [allgather]="megatron.model.moe_token_dispatcher_type=allgather"
  [allgather_router]="megatron.model.moe_token_dispatcher_type=allgather megatron.model.moe_router_fusion=true"
  [chunk256]="model.mamba_chunk_size=256"
  [batch64]="train.global_batch_size=64"
  [graphs_router]="megatron.model.cuda_graph_modules=[attn,mamba,moe_router,moe_preprocess]"
  [no_graphs]="megatron.model.cuda_graph_impl=none megatron.model.cuda_graph_modules=[]"
  [fused_residual]="megatron.model.fused_residual_rmsnorm=true"
  [seq8192]="train.seq_length=8192 train.micro_batch_size=8 train.global_batch_size=16"
  [fp8]="megatron.mixed_precision=bf16_with_fp8_current_scaling_mixed megatron.model.moe_router_padding_for_quantization=true"
  [together]="${TOGETHER:-}"
)
for name in ${VARIANTS:-mbs16 allgather allgather_router batch64 mbs8 fused_residual seq8192 router_fusion te_cross_entropy chunk256 no_graphs mbs4_recipe fp8}; do
  queue tune "$name" ${CHANGE[$name]}; done
drain
