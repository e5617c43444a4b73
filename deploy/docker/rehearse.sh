#!/usr/bin/env bash
# Run the whole compose file for real where no image can be pulled: on Debian 12 as root, with stand-in base images made by
# debootstrap (operating system, Python, redis-server, Prometheus, Java) and Kafka's jars from the test kit.
#
#   deploy/docker/rehearse.sh            up, publish, look, kill the worker, look again, down
#   SHIFT=1 deploy/docker/rehearse.sh    also the night on call of rehearsal/shift.py, 40 minutes more
#   KEEP=1 WORK=DIR deploy/docker/rehearse.sh     leave it running (its own dockerd too); the next run with the same WORK goes on
#                                                 with the base images and the build cache that are there
#
# Needs: apt-get install docker.io docker-compose debootstrap; Kafka's jars (`python -m stream_sentiment.testing`).
# It starts a dockerd of its own, on its own socket and data directory, and ends only that.
set -euo pipefail
cd "$(dirname "$0")/../.."

WORK=${WORK:-$(mktemp -d /var/tmp/rehearsal.XXXXXX)}
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' | head -n 1)}
PYTHON=${PYTHON:-python3}
JARS=${JARS:-$("$PYTHON" -c 'from stream_sentiment.testing.kafka_jars import kafka_jars; print(kafka_jars())')}
RATE=${RATE:-10}
export DOCKER_HOST="unix://$WORK/docker.sock" DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 COMPOSE_PROJECT_NAME=rehearsal
export PYTHON_IMAGE=stand-in/base:1 KAFKA_IMAGE=stand-in/kafka:1 REDIS_IMAGE=stand-in/redis:1 PROMETHEUS_IMAGE=stand-in/prometheus:1
export PROMETHEUS_BINARY=/usr/bin/prometheus PROMETHEUS_PORT=${PROMETHEUS_PORT:-19090} LOAD_RATE=$RATE PARTITIONS=4
export WORKER_IMAGE=stand-in/worker:1 ALERTMANAGER_IMAGE=stand-in/alertmanager:1 REDIS_EXPORTER_IMAGE=stand-in/redis-exporter:1 ALERTMANAGER_PORT=${ALERTMANAGER_PORT:-19093}
COMPOSE=(docker-compose --profile observability --profile tools -f docker-compose.yml -f deploy/docker/rehearsal/compose.yml)
DOCKERD=

say() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

finish() {
  status=$?
  if [[ $status -ne 0 ]]; then "${COMPOSE[@]}" logs --tail 40 2>/dev/null | cut -c1-220 || true; fi
  if [[ -z ${KEEP:-} ]]; then
    say "down"
    "${COMPOSE[@]}" down --volumes --timeout 30 2>/dev/null || true
    if [[ -n $DOCKERD ]]; then kill "$DOCKERD" && wait "$DOCKERD" 2>/dev/null || true; fi
    umount "$WORK"/docker/overlay2/*/merged "$WORK/docker" 2>/dev/null || true
    rm -rf "$WORK"
  fi
  exit "$status"
}
trap finish EXIT

say "dockerd of our own"
if ! docker info >/dev/null 2>&1; then
  dockerd --host "$DOCKER_HOST" --data-root "$WORK/docker" --exec-root "$WORK/exec" --pidfile "$WORK/dockerd.pid" \
    --storage-driver overlay2 >"$WORK/dockerd.log" 2>&1 &
  DOCKERD=$!
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
fi
docker info --format 'docker {{.ServerVersion}}'

make_base() {
  debootstrap --variant=minbase \
    --include=ca-certificates,python3,python3-venv,redis-server,redis-tools,prometheus,prometheus-alertmanager,prometheus-redis-exporter,openjdk-17-jre-headless,wget \
    bookworm "$WORK/root" "$MIRROR" >"$WORK/debootstrap.log" 2>&1 || { tail -n 20 "$WORK/debootstrap.log"; exit 1; }
  # The machine's own certificate authorities: the build inside must reach what the machine reaches.
  cp /etc/ssl/certs/ca-certificates.crt "$WORK/root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$WORK/root" -c . | docker import --change 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - stand-in/base:1 >/dev/null
  rm -rf "$WORK/root"
}

say "stand-in base images"
docker image inspect "$PYTHON_IMAGE" >/dev/null 2>&1 || make_base
mkdir -p "$WORK/jars"
cp "$JARS"/*.jar deploy/docker/rehearsal/kafka_entrypoint.py "$WORK/jars/"
docker build -q -t "$KAFKA_IMAGE" -f deploy/docker/rehearsal/kafka.Dockerfile "$WORK/jars" >/dev/null
docker build -q -t "$REDIS_IMAGE" - <<'D' >/dev/null
FROM stand-in/base:1
RUN mkdir -p /data && chown 999:999 /data
WORKDIR /data
D
docker build -q -t "$PROMETHEUS_IMAGE" - <<'D' >/dev/null
FROM stand-in/base:1
RUN rm -rf /etc/prometheus && mkdir -p /prometheus /etc/prometheus && chown 65534:65534 /prometheus
D
docker build -q -t "$ALERTMANAGER_IMAGE" - <<'D' >/dev/null
FROM stand-in/base:1
ENTRYPOINT ["prometheus-alertmanager"]
D
docker build -q -t "$REDIS_EXPORTER_IMAGE" - <<'D' >/dev/null
FROM stand-in/base:1
USER 59000:59000
ENTRYPOINT ["prometheus-redis-exporter"]
D
docker images --format '{{.Repository}} {{.Size}}'

say "the image, as its Dockerfile builds it"
SECRET=()
if [[ -f ${PIP_CONFIG_FILE:-$HOME/.config/pip/pip.conf} ]]; then SECRET=(--secret "id=pip_config,src=${PIP_CONFIG_FILE:-$HOME/.config/pip/pip.conf}"); fi
docker build --network host "${SECRET[@]}" --build-arg PYTHON_IMAGE="$PYTHON_IMAGE" --build-arg REVISION="$(git rev-parse --short HEAD)" \
  -f deploy/docker/Dockerfile -t "$WORKER_IMAGE" . >"$WORK/build.log" 2>&1 || { tail -n 40 "$WORK/build.log"; exit 1; }
docker image inspect "$WORKER_IMAGE" --format 'user {{.Config.User}}, stop {{.Config.StopSignal}}, {{.Size}} bytes'
docker run --rm --entrypoint sh "$WORKER_IMAGE" -c 'if command -v gcc || command -v pip; then exit 1; fi; echo "user $(id -u), no compiler, no pip"'

say "up"
"${COMPOSE[@]}" down --volumes --timeout 30 >/dev/null 2>&1 || true
# Of all profiles, what Debian has: no Grafana, no kafka-ui, no GPU.
"${COMPOSE[@]}" up -d --no-build kafka redis worker prometheus alertmanager redis-exporter canary load
"${COMPOSE[@]}" ps

check() { "${COMPOSE[@]}" exec -T worker python3 - "$@" <deploy/docker/rehearsal/check.py; }

say "events, scores, an escalation on its topic"
check escalation 180
say "Prometheus sees the worker and the escalation"
# Waits until a query gives something, and prints labels and value of each sample.
ask() {
  "$PYTHON" - "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/query" "$1" <<'P'
import json, sys, time, urllib.parse, urllib.request

address, query = sys.argv[1:]
for _ in range(60):
    try:
        with urllib.request.urlopen(address, urllib.parse.urlencode({"query": query}).encode()) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        found = []
    if found:
        for sample in found:
            print(*(f"{name}={value}" for name, value in sorted(sample["metric"].items())), sample["value"][1])
        sys.exit()
    time.sleep(2)
sys.exit(f"no data: {query}")
P
}
ask 'sum by (rule, severity) (stream_sentiment_escalations_total) > 0'
ask 'up'
ask 'redis_up'
ask 'stream_sentiment_heartbeat_timestamp_seconds{stage="applied"} > 0'
ask 'count(up{job="prometheus"}) + count(slo:error_budget:ratio)'
wget -q -O - "http://127.0.0.1:$PROMETHEUS_PORT/api/v1/alertmanagers" | grep -o '"activeAlertmanagers":\[{[^]]*'

say "health as Docker sees it"
for _ in $(seq 40); do
  health=$(docker inspect --format '{{.State.Health.Status}}' rehearsal_worker_1)
  [[ $health == healthy ]] && break
  sleep 2
done
echo "worker: $health"
[[ $health == healthy ]]

if [[ -n ${SHIFT:-} ]]; then
  say "a night on call"
  "$PYTHON" deploy/docker/rehearsal/shift.py
fi

say "SIGKILL the worker under load, start it again"
docker kill --signal KILL rehearsal_worker_1 >/dev/null
sleep 5
"${COMPOSE[@]}" up -d --no-build worker >/dev/null 2>&1
"${COMPOSE[@]}" stop load >/dev/null 2>&1
check lossless 240

say "graceful stop"
before=$SECONDS
"${COMPOSE[@]}" stop worker >/dev/null 2>&1
echo "exit status $(docker inspect --format '{{.State.ExitCode}}' rehearsal_worker_1) after $((SECONDS - before)) s"
[[ $(docker inspect --format '{{.State.ExitCode}}' rehearsal_worker_1) == 0 ]]
say "rehearsal passed"
