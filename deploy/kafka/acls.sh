#!/usr/bin/env bash
# Gives each process the rights in Kafka that it needs, and no more. Run once with an administrator's rights:
#
#   KAFKA_ACLS="/opt/kafka/bin/kafka-acls.sh --bootstrap-server kafka-1:9093 --command-config admin.properties" \
#     deploy/kafka/acls.sh
#
# Users: dispatchai-gateway, -console, -worker, -speech, -topics (`dispatchai topics apply` or `upgrade`, once at each
# upgrade), -review (reads everything, writes nothing) and -retry (`dispatchai dead-letters`). Existing rights are not
# changed.
set -euo pipefail

: "${KAFKA_ACLS:?the kafka-acls.sh command with its connection options}"
read -ra acls <<<"$KAFKA_ACLS"

allow() { # allow USER OPERATION[,OPERATION] RESOURCE-OPTION NAME [MORE OPTIONS]
  local user=$1 operations=() operation
  for operation in ${2//,/ }; do operations+=(--operation "$operation"); done
  "${acls[@]}" --add --allow-principal "User:dispatchai-$user" "${operations[@]}" "${@:3}"
}
reads() { for topic in "${@:2}"; do allow "$1" Read,Describe --topic "$topic"; done; }
writes() { for topic in "${@:2}"; do allow "$1" Write,Describe --topic "$topic"; done; }

recorded=(call-events audio-frames signals transcripts assessments packets dispatch-actions)
topics=("${recorded[@]}" live-calls dispatch-queue dead-letters)

writes gateway call-events audio-frames dead-letters

reads console live-calls dispatch-queue
writes console dispatch-actions

reads worker call-events audio-frames signals transcripts assessments live-calls dispatch-queue dispatch-actions
# call-events: for the timers of calls.
writes worker call-events signals assessments packets live-calls dispatch-queue dead-letters

reads speech audio-frames call-events
writes speech transcripts dead-letters

# A record is sent again to its own topic. Records of compacted topics are not.
reads retry "${recorded[@]}" dead-letters
writes retry "${recorded[@]}" dead-letters

for app in worker speech; do
  allow "$app" Read,Write,Describe --topic "dispatchai-$app-" --resource-pattern-type prefixed  # changelogs
  allow "$app" Read --group "dispatchai-$app"
done

# The offsets up to which `dispatchai topics upgrade` copied packets.
allow worker Describe --group dispatchai-packets
allow topics Read --group dispatchai-packets
allow topics Read --topic dispatch-queue
allow topics Read,Write --topic packets

for topic in "${topics[@]}"; do
  allow topics Create,Describe,DescribeConfigs --topic "$topic"
  allow review Read,Describe,DescribeConfigs --topic "$topic"
  allow worker Describe,DescribeConfigs --topic "$topic"  # `dispatchai doctor` runs with the worker's settings
done
for app in worker speech; do
  allow topics Create,Describe,DescribeConfigs --topic "dispatchai-$app-" --resource-pattern-type prefixed
  allow worker Describe,DescribeConfigs --topic "dispatchai-$app-" --resource-pattern-type prefixed
done
