#!/usr/bin/env bash
# Sign in, and save the access token for scripts/tasks.sh:
#   scripts/login.sh EMAIL

# shellcheck source=scripts/api.sh
source "$(dirname "$0")/api.sh"

[[ $# -eq 1 ]] || usage
ask_password
request POST /auth/login --data-binary @- \
  <<<"{\"email\": $(json_string "$1"), \"password\": $(json_string "$password")}"
keep_token
echo "Signed in; the token is in $TASKS_TOKEN_FILE"
