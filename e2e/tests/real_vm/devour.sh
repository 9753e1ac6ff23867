# A job that takes memory without end, and then looks whether anything is left of its machine.
set +e
touch "$HOME/begun"
perl -e 'my @all; push @all, "x" x 16777216 while 1'
echo "ended with $?"
touch "$HOME/devoured"
until [ -e "$HOME/gate" ]; do sleep 0.2; done
exit 3
