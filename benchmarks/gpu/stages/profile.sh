# Two steps of the 1.2 B model under torch's profiler, as a table of what the GPU did.
source "$ROOT/benchmarks/gpu/stages/speed.sh"
say profile
LIMIT=200 turn train "$K/profile" "$DATA" $W ${PROFILE:-} megatron.profiling.use_pytorch_profiler=true megatron.profiling.profile_step_start=10 megatron.profiling.profile_step_end=12 > "$OUT/profile.log" 2>&1; echo "rc=$?"
python3 benchmarks/gpu/profile_table.py "$K"/profile/tensorboard/torch_profile/rank-0.json.gz --json "$OUT/profile.json" > "$OUT/profile.txt" 2>&1; head -60 "$OUT/profile.txt"
