//! Just enough of the Redis protocol to look after a test server.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// A hung server gives an error, not a hung test.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One blocking connection.
pub struct Connection {
    reader: BufReader<Box<dyn ReadWrite>>,
}

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Several replies.
    Array(Vec<Self>),
    /// A number.
    Integer(i64),
    /// Nothing.
    Nil,
    /// A status or a string.
    Text(String),
}

trait ReadWrite: Read + Write + Send {}

impl<T: Read + Write + Send> ReadWrite for T {}

impl Connection {
    /// Connects to a port of 127.0.0.1.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn tcp(port: u16) -> io::Result<Self> {
        Self::at((Ipv4Addr::LOCALHOST, port))
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn at(address: impl Into<SocketAddr>) -> io::Result<Self> {
        let stream = TcpStream::connect(address.into())?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(Box::new(stream)) })
    }

    /// Connects to a unix socket.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { reader: BufReader::new(Box::new(stream)) })
    }

    /// Sends one command and waits up to ten seconds for its reply.
    ///
    /// # Errors
    /// The server's own error as [`io::ErrorKind::Other`], with its text as the message; any other
    /// kind is a failure of the connection, which is of no use afterwards.
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            let arg = arg.as_ref();
            write!(request, "${}\r\n", arg.len())?;
            request.extend_from_slice(arg);
            request.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&request)?;
        self.read()
    }

    /// Reads one reply, or one push of a subscription.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn read(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let Some(body) = line.strip_suffix("\r\n") else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let Some((kind, rest)) = body.split_at_checked(1) else { return Err(invalid(body)) };
        match kind {
            "+" => Ok(Reply::Text(rest.to_owned())),
            "-" => Err(io::Error::other(rest.to_owned())),
            ":" => Ok(Reply::Integer(rest.parse().map_err(|_| invalid(body))?)),
            "$" => match rest.parse::<i64>().map_err(|_| invalid(body))? {
                ..0 => Ok(Reply::Nil),
                length => self.read_bulk(usize::try_from(length).expect("it is not negative")),
            },
            "*" => match rest.parse::<i64>().map_err(|_| invalid(body))? {
                ..0 => Ok(Reply::Nil),
                count => {
                    Ok(Reply::Array((0..count).map(|_| self.read()).collect::<Result<_, _>>()?))
                }
            },
            _ => Err(invalid(body)),
        }
    }

    fn read_bulk(&mut self, length: usize) -> io::Result<Reply> {
        let mut bytes = vec![0; length + 2];
        self.reader.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// An array prints one element per line, nothing prints nothing.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(replies) => {
                for (index, reply) in replies.iter().enumerate() {
                    if index != 0 {
                        f.write_str("\n")?;
                    }
                    reply.fmt(f)?;
                }
                Ok(())
            }
            Self::Integer(number) => number.fmt(f),
            Self::Nil => Ok(()),
            Self::Text(text) => f.write_str(text),
        }
    }
}

fn invalid(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a reply: `{line}`"))
}
