#!/usr/bin/env bash
# Create, list and change your tasks, after scripts/register.sh or scripts/login.sh:
#   scripts/tasks.sh create TITLE [DESCRIPTION]
#   scripts/tasks.sh list [status=all|pending|completed] [sort=created|title] [order=asc|desc]
#   scripts/tasks.sh show ID
#   scripts/tasks.sh edit ID [title=TEXT] [description=TEXT] [completed=true|false]
#   scripts/tasks.sh toggle ID
#   scripts/tasks.sh delete ID
# `edit ID description=` clears the description. Each command prints JSON; `list` prints one task a line.

# shellcheck source=scripts/api.sh
source "$(dirname "$0")/api.sh"

create() {
  [[ $# -eq 1 || $# -eq 2 ]] || usage
  local description=${2:+, \"description\": $(json_string "$2")}
  signed_request POST /tasks --data-binary @- <<<"{\"title\": $(json_string "$1")$description}"
  printf '%s\n' "$body"
}

list() {
  local query=(--get) argument
  for argument; do
    [[ $argument == *=* ]] || usage
    query+=(--data-urlencode "$argument")
  done
  signed_request GET /tasks "${query[@]}"
  print_list
  # A page has at most 1,000 tasks, and a link to the next page.
  while [[ $headers =~ [Ll]ink:\ \<([^>]+)\>\;\ rel=\"next\" ]]; do
    signed_request GET "${BASH_REMATCH[1]}"
    print_list
  done
}

# Print one task a line. `},{"` is between two tasks only, because a quote in a text is escaped.
print_list() {
  local tasks=${body#[} between='},{"' lines=$'}\n{"'
  tasks=${tasks%]}
  if [[ -n $tasks ]]; then printf '%s\n' "${tasks//$between/$lines}"; fi
}

show() {
  [[ $# -eq 1 ]] || usage
  signed_request GET "/tasks/$1"
  printf '%s\n' "$body"
}

edit() {
  [[ $# -ge 1 ]] || usage
  local id=$1 fields='' argument value
  shift
  for argument; do
    case $argument in
      description=) value=null ;;
      completed=true | completed=false) value=${argument#*=} ;;
      title=* | description=* | completed=*) value=$(json_string "${argument#*=}") ;;
      *) usage ;;
    esac
    fields+="${fields:+, }\"${argument%%=*}\": $value"
  done
  signed_request PATCH "/tasks/$id" --data-binary @- <<<"{$fields}"
  printf '%s\n' "$body"
}

toggle() {
  [[ $# -eq 1 ]] || usage
  signed_request PATCH "/tasks/$1/complete"
  printf '%s\n' "$body"
}

delete() {
  [[ $# -eq 1 ]] || usage
  signed_request DELETE "/tasks/$1"
}

case ${1:-} in
  show | edit | toggle | delete) [[ ${2:-} =~ ^[0-9]+$ ]] || usage ;; # because only a number may go into a path
  create | list) ;;
  *) usage ;;
esac
"$@"
