#!/usr/bin/env bash
# Sign out: end the session, and delete the file of the access token:
#   scripts/logout.sh

# shellcheck source=scripts/api.sh
source "$(dirname "$0")/api.sh"

[[ $# -eq 0 ]] || usage
signed_request POST /auth/logout
rm -f "$TASKS_TOKEN_FILE"
echo "Signed out"
