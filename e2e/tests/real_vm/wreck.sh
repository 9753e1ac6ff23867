# A job that leaves its machine no disk and no processes.
set +e
head -c 8G /dev/zero > "$HOME/full" 2>/dev/null
echo "left on the disk: $(df --output=avail / | tail -n 1)"
bomb() { bomb | bomb & }
bomb 2>/dev/null
# Without a process of its own, for there is none to be had.
until ((SECONDS > 30)); do :; done
exit 0
