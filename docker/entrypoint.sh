#!/usr/bin/env bash
# What a container runs, by its first argument:
#   head [OPTION]...     a Ray head, and `rewright serve` on it; OPTIONs go to `ray start`
#   worker [OPTION]...   a Ray node that joins the head
#   anything else        a command of rewright: `entrypoint.sh models list`
#
# RAY_HEAD is host:port of the head for both. Ray's token comes from RAY_AUTH_TOKEN, or from the file that
# RAY_AUTH_TOKEN_PATH names. On SIGTERM the head finishes the requests in flight, then ends Ray; when Ray ends by itself
# the head ends too, so that its container is started again.
set -euo pipefail

readonly DASHBOARD_PORT=8265
readonly OBJECT_STORE_BYTES=$((1 << 30)) # rows and tokens travel through it, never weights

require() { # NAME...: one of these variables must be set
  local name
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then return; fi
  done
  echo "entrypoint: set ${*}; docker/README.md says how to make one" >&2
  exit 2
}

wait_for_ray() { # ADDRESS [PID]: until Ray answers there; fails when the process PID has ended
  local said
  until said=$(ray health-check --address "$1" 2>&1); do
    if [ -n "${2:-}" ] && ! kill -0 "$2" 2>/dev/null; then return 1; fi
    echo "entrypoint: waiting for Ray at $1: ${said##*$'\n'}" >&2
    sleep 1
  done
}

start_ray() { # OPTION...: becomes `ray start`. What Ray runs for its jobs is not the service: it gets none of its
  # settings, which it would take for its own, and none of its secrets.
  local name
  while read -r name; do
    case "$name" in
      REWRIGHT_API_KEYS | REWRIGHT_*__*) unset "$name" ;;
    esac
  done < <(compgen -e)
  exec ray start --block --object-store-memory "$OBJECT_STORE_BYTES" "$@"
}

run_head() {
  require REWRIGHT_API_KEYS
  local address code=0
  # The address that the workers see: a container may have several.
  address=$(getent ahostsv4 "${RAY_HEAD%:*}" | awk 'NR == 1 { print $1 }') || {
    echo "entrypoint: RAY_HEAD is $RAY_HEAD, and no address is known for that name" >&2
    exit 2
  }
  export REWRIGHT_SERVER__RAY__ADDRESS="$address:${RAY_HEAD##*:}"

  trap stop TERM INT
  # Nothing is left to drain when the service has ended.
  RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 start_ray --head --node-ip-address "$address" --port "${RAY_HEAD##*:}" \
    --dashboard-host "$address" --dashboard-port "$DASHBOARD_PORT" "$@" &
  ray=$!
  if wait_for_ray "$REWRIGHT_SERVER__RAY__ADDRESS" "$ray" && [ -z "$stopping" ]; then
    rewright serve &
    serve=$!
    # A signal ends `wait` early, so ask again while both run.
    while kill -0 "$ray" 2>/dev/null && kill -0 "$serve" 2>/dev/null; do
      wait -n "$ray" "$serve" || true
    done
    if ! kill -0 "$ray" 2>/dev/null; then
      echo "entrypoint: Ray has ended" >&2
      kill -KILL "$serve" 2>/dev/null || true # without Ray it can finish nothing
    fi
    wait "$serve" || code=$?
  elif [ -z "$stopping" ]; then
    code=1
  fi
  kill -TERM "$ray" 2>/dev/null || true
  wait "$ray" || true
  exit "$code"
}

stop() {
  stopping=yes
  kill -TERM "${serve:-$ray}" 2>/dev/null || true
}

run_worker() {
  wait_for_ray "$RAY_HEAD"
  start_ray --address "$RAY_HEAD" "$@"
}

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_raylet_start_wait_time_s=600 # Ray gives up after 30, too soon for a busy machine
RAY_HEAD=${RAY_HEAD:-$(hostname):6379}
ray='' serve='' stopping=''

case "${1:-}" in
  head | worker)
    require RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH
    "run_$1" "${@:2}"
    ;;
  *) exec rewright "$@" ;;
esac
