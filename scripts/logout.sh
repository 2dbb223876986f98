#!/usr/bin/env bash
# Sign out: the token is worth nothing from now on, and its file is gone:
#   scripts/logout.sh

# shellcheck source=scripts/api.sh
source "$(dirname "$0")/api.sh"

[[ $# -eq 0 ]] || usage
signed_request POST /auth/logout
rm -f "$TASKS_TOKEN_FILE"
echo "Signed out"
