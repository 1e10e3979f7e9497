# Memory and step time of about twenty small models, for the cost model of `nano3 plan`. All run in one process, so that only the first
# one imports and compiles. BUDGET is the time in seconds after which no further point starts. A crash costs one point: the rest run in
# another process.
BUDGET=${BUDGET:-320} PLAN_START=$(date +%s)
say "plan: points"
for attempt in 1 2 3 4 5 6; do
  left=$((BUDGET - $(date +%s) + PLAN_START)); [ "$left" -gt 60 ] || break
  timeout -s ABRT -k 5 $((left + 60)) python3 -X faulthandler benchmarks/gpu/plan_points.py "$OUT/plan_points.json" "$DATA" "$K/plan_points" "$left" >> "$OUT/plan_points.log" 2>&1; rc=$?
  echo "attempt $attempt rc=$rc"; [ "$rc" != 0 ] || break
done
grep -E "^POINT" "$OUT/plan_points.log"
