#!/usr/bin/env bash
# Create an account and sign in:
#   scripts/register.sh EMAIL [NAME]

# shellcheck source=scripts/api.sh
source "$(dirname "$0")/api.sh"

[[ $# -eq 1 || $# -eq 2 ]] || usage
ask_password
name=${2:+, \"name\": $(json_string "$2")}
request POST /auth/register --data-binary @- \
  <<<"{\"email\": $(json_string "$1"), \"password\": $(json_string "$password")$name}"
keep_token
echo "Registered and signed in; the token is in $TASKS_TOKEN_FILE"
