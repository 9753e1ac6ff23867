# A job that leaves its machine no disk.
set +e
head -c 8G /dev/zero > "$HOME/full" 2>/dev/null
until [ -e /run/gate ]; do sleep 0.2; done
echo "left on the disk:" $(df --output=avail / | tail -n 1)
exit 0
