#!/usr/bin/env bash
# Settings in the environment, which scripts/api.sh reads for the scripts that source it:
#   TASKS_URL         the base URL of the service, by default http://127.0.0.1:8000
#   TASKS_TOKEN_FILE  the file of the access token, mode 0600, by default under ~/.config/tasks-api
#   TASKS_PASSWORD    the password; without it the script asks, or reads the first line of standard input

# The scripts for curl source this file for its functions, which send requests to the service.
# No password and no token is an argument of a program, because `ps` shows arguments to every user.
set -euo pipefail

TASKS_URL=${TASKS_URL:-http://127.0.0.1:8000}
TASKS_URL=${TASKS_URL%/}
# One file per server, so that no server receives the token of another.
token_directory=${XDG_CONFIG_HOME:-$HOME/.config}/tasks-api
TASKS_TOKEN_FILE=${TASKS_TOKEN_FILE:-$token_directory/${TASKS_URL//[^A-Za-z0-9.]/_}}

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# Print the comments at the top of the script and of this file.
show_help() {
  local file
  for file in "$0" "${BASH_SOURCE[0]}"; do
    sed -n '2,/^$/s/^# \{0,1\}//p' "$file"
  done
}

# End the script because its arguments are wrong.
usage() {
  show_help >&2
  exit 2
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  show_help
  exit
fi

# json_string TEXT: print any text as a JSON string. It reads bytes, so that UTF-8 stays unchanged.
json_string() {
  local LC_ALL=C text=$1 escaped='' char i
  for ((i = 0; i < ${#text}; i++)); do
    char=${text:i:1}
    case $char in
      '"' | \\) char=\\$char ;;
      [[:cntrl:]]) printf -v char '\\u%04x' "'$char" ;;
    esac
    escaped+=$char
  done
  printf '"%s"' "$escaped"
}

# ask_password: set $password, from TASKS_PASSWORD, the terminal or standard input.
ask_password() {
  password=${TASKS_PASSWORD:-}
  if [[ -n $password ]]; then return; fi
  if [[ -t 0 ]]; then
    IFS= read -rsp 'Password: ' password
    echo >&2
  else
    IFS= read -r password || [[ -n $password ]] || fail 'No password on standard input'
  fi
}

# request METHOD PATH [CURL ARGUMENTS]: set $headers and $body from the response; an error ends the script.
# The argument `--data-binary @-` sends standard input as the body.
request() {
  local method=$1 path=$2 answer status
  shift 2
  answer=$(
    curl --silent --show-error --include --write-out '\n%{http_code}' --globoff --proto =http,https \
      --header Expect: --header 'Content-Type: application/json' --request "$method" "$@" "$TASKS_URL$path"
  )
  status=${answer##*$'\n'}
  answer=${answer%$'\n'*}
  # shellcheck disable=SC2034  # for tasks.sh
  headers=${answer%%$'\r\n\r\n'*}
  body=${answer#*$'\r\n\r\n'}
  if [[ $status != 2?? ]]; then fail "$(explain "$status")"; fi
}

# signed_request METHOD PATH [CURL ARGUMENTS]: the same as `request`, with the access token.
signed_request() {
  [[ -r $TASKS_TOKEN_FILE ]] || fail "Sign in first: ${0%/*}/login.sh EMAIL"
  request "$@" --header @<(printf 'Authorization: Bearer %s\n' "$(<"$TASKS_TOKEN_FILE")")
}

# explain STATUS: print the error's `detail`, and the message of each field that is wrong.
explain() {
  local text='"(([^"\\]|\\.)*)"' rest=$body
  if [[ $body =~ \"detail\":$text ]]; then
    printf '%s (%s)\n' "${BASH_REMATCH[1]}" "$1"
  else
    printf '%s answered %s\n' "$TASKS_URL" "$1"
  fi
  while [[ $rest =~ \"field\":$text,\"message\":$text ]]; do
    printf '  %s: %s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}"
    rest=${rest#*"${BASH_REMATCH[0]}"}
  done
}

# keep_token: write the access token of $body to a new file, which replaces the old one.
# The mode is 0600, because a new file does not inherit that of the old one.
keep_token() {
  [[ $body =~ \"access_token\":\"([A-Za-z0-9._-]+)\" ]] || fail "$TASKS_URL gave no access token"
  local token=${BASH_REMATCH[1]} directory fresh
  directory=$(dirname "$TASKS_TOKEN_FILE")
  (umask 077 && mkdir -p "$directory")
  fresh=$(mktemp "$TASKS_TOKEN_FILE.XXXXXX") # mode 0600
  printf '%s\n' "$token" >"$fresh"
  mv -f "$fresh" "$TASKS_TOKEN_FILE"
}
