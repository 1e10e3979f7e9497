# Changes to train=one_hopper one by one, alternated with the unchanged setting, then together, and profiles of both
# (benchmarks/gpu/tune_points.py). All run in one process, so that only the first one imports and compiles; after a crash or with a
# full GPU the next process goes on, which has imported the stack meanwhile (STANDBY=none: no further one). BUDGET is in seconds, POINTS
# names points. PLAN_SECONDS then measures the points of the stage `plan` in the same process.
BUDGET=${BUDGET:-390} TUNE_END=$(($(date +%s) + BUDGET))
[ -d "${DATA}_1500" ] || python3 -m nano3.data_prep data_blend=sample data_blend.name=short engine="$ENGINE" output_dir="${DATA}_1500" valid_fraction=0.05 max_doc_tokens=1500 > "$OUT/tune_data.txt" 2>&1 || cat "$OUT/tune_data.txt"
say "tune: $BUDGET s"
tune_points() { TURN=$K/turn_tune timeout -s ABRT -k 5 $((TUNE_END + 20 + ${PLAN_SECONDS:-0} - $(date +%s))) python3 -X faulthandler benchmarks/gpu/tune_points.py "$OUT/tune.json" "$DATA" "$K/tune" "$TUNE_END" ${POINTS:-} >> "$OUT/tune.log" 2>&1; }
tune_points & current=$!
for attempt in 1 2 3 4 5 6 7 8; do
  [ "${STANDBY:-60}" != none ] && [ $((TUNE_END - $(date +%s))) -gt 60 ] || { wait "$current"; echo "attempt $attempt rc=$?"; break; }
  (sleep "${STANDBY:-60}"; tune_points) & standby=$!  # after the first one has the lock
  wait "$current"; rc=$?; echo "attempt $attempt rc=$rc"
  if [ "$rc" = 0 ]; then pkill -P "$standby" 2>/dev/null; kill "$standby" 2>/dev/null; wait "$standby" 2>/dev/null; break; fi
  current=$standby
done
grep -E "^POINT" "$OUT/tune.log" | cut -c1-300
cat "$OUT"/tune.txt; for f in "$OUT"/tune_*profile.txt; do echo "== $f"; head -60 "$f"; done
gzip -f "$OUT/tune.log"
