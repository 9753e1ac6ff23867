//! Joins standard input and output with a TCP connection: QEMU starts one for each connection a VM makes to its
//! metadata server. Only the standard library, because it starts often.

use std::{
    env,
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).ok_or_else(|| io::Error::other("usage: guest-relay HOST:PORT"))?;
    let server = TcpStream::connect(address)?;
    let mut to_server = server.try_clone()?;
    thread::spawn(move || {
        // However it ends, the VM has nothing more to say.
        io::copy(&mut io::stdin().lock(), &mut to_server).and_then(|_| to_server.shutdown(Shutdown::Write)).ok();
    });
    let (mut server, mut buffer) = (server, [0; 8192]);
    loop {
        let count = server.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        io::stdout().write_all(bytes)?;
        io::stdout().flush()?;
    }
}
