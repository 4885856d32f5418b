#!/bin/sh
# An agent in thirty lines: sh docs/agent.sh, with URL and TOKEN in the environment. What is not sent yet is in $BUFFER.
: "${URL:=http://127.0.0.1:8080}" "${TOKEN:?must be the token of a device}" "${BUFFER:=heartbeats.ndjson}"
interval=${INTERVAL:-60} # until the server says another
due=0
trap 'kill "$!" 2> /dev/null; exit' INT TERM
touch "$BUFFER"
answered() { grep -o "\"$1\":[0-9]*" "$BUFFER.answer" | tail -n 1 | cut -d : -f 2; }
while :; do
  now=$(date +%s)
  if [ "$now" -ge "$due" ]; then
    # With the device's own time: sent once more because the answer was lost, it is a duplicate and not a second heartbeat.
    printf '{"ts":"%s","battery_pct":%d,"agent_version":"agent.sh"}\n' "$(date -u +%FT%TZ)" "${BATTERY:-100}" >> "$BUFFER"
    due=$((now + interval))
  fi
  head -n 1000 "$BUFFER" > "$BUFFER.sent"
  pause=$interval
  # By standard input, since arguments can be read by everybody on the machine.
  status=$(printf 'header = "Authorization: Bearer %s"\n' "$TOKEN" | curl -sS -K - -m 30 -o "$BUFFER.answer" -D "$BUFFER.headers" \
    -w '%{http_code}' -H 'Content-Type: application/x-ndjson' --data-binary "@$BUFFER.sent" "$URL/v1/heartbeats")
  case $status in
    200) # each of them was judged, and none needs to be sent again
      tail -n "+$(($(wc -l < "$BUFFER.sent") + 1))" "$BUFFER" > "$BUFFER.rest" && mv "$BUFFER.rest" "$BUFFER"
      said=$(answered next_interval_s) rejected=$(answered rejected)
      interval=${said:-$interval} due=$((now + ${said:-$interval})) pause=$interval
      [ -s "$BUFFER" ] && pause=0
      echo "sent $(($(wc -l < "$BUFFER.sent") - ${rejected:=0})), rejected $rejected, next in $interval s"
      # Why, with the server's words: they are not in the buffer any more.
      [ "$rejected" -eq 0 ] || grep -o '{"result":"rejected"[^}]*}' "$BUFFER.answer" | tr -d '{}[]"' >&2
      grep -o '"ignored":[^]]*]' "$BUFFER.answer" >&2 ;;
    000) echo "offline, $(wc -l < "$BUFFER") kept" ;;
    408 | 429 | 5??) pause=$(tr -d '\r' < "$BUFFER.headers" | sed -n 's/^retry-after: *//Ip')
      echo "refused with $status, again in ${pause:=$interval} s" ;;
    *) cat "$BUFFER.answer" >&2; exit 1 ;;
  esac
  sleep "$pause" &
  wait $!
done
