//! A Redis server behind TLS.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    certificate::{Authority, Flaw},
    redis::RedisServer,
};

/// One server whose only port speaks TLS, with a certificate made on the spot.
///
/// The certificate names `localhost` and `127.0.0.1`. The unix socket stays in the clear.
#[derive(Debug)]
pub struct RedisTls {
    server: RedisServer,
}

impl RedisTls {
    /// Makes an authority and a certificate, starts a server with them and waits until it answers.
    ///
    /// # Errors
    /// As [`RedisServer::start`]; a Redis built without TLS says so.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        Self::start_with(args, None)
    }

    /// The same, with a certificate that no client should accept though its authority is trusted.
    ///
    /// # Errors
    /// As [`RedisTls::start`].
    pub fn flawed(flaw: Flaw) -> io::Result<Self> {
        Self::start_with(&[], Some(flaw))
    }

    fn start_with(args: &[&str], flaw: Option<Flaw>) -> io::Result<Self> {
        let server = RedisServer::launch("tls", |port, dir| {
            write_certificates(dir, flaw)?;
            let path = |name| dir.join(name).display().to_string();
            let (port, ca, cert, key) =
                (port.to_string(), path(CA), path("server.pem"), path("server.key"));
            let own = [
                ["--port", "0"],
                ["--tls-port", &port],
                ["--tls-ca-cert-file", &ca],
                ["--tls-cert-file", &cert],
                ["--tls-key-file", &key],
                ["--tls-auth-clients", "no"],
            ];
            Ok([own.as_flattened(), args].concat().into_iter().map(str::to_owned).collect())
        })?;
        Ok(Self { server })
    }

    /// The server; its [`url`](RedisServer::url) is not the one to use.
    #[must_use]
    pub fn server(&self) -> &RedisServer {
        &self.server
    }

    /// `rediss://localhost:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("rediss://localhost:{}", self.server.port())
    }

    /// The PEM file of the authority that signed the server's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.server.dir().join(CA)
    }

    /// The PEM file of an authority that has nothing to do with this server.
    #[must_use]
    pub fn other_ca(&self) -> PathBuf {
        self.server.dir().join(OTHER_CA)
    }

    /// The server alone, for who wants to keep it longer.
    #[must_use]
    pub fn into_server(self) -> RedisServer {
        self.server
    }
}

const CA: &str = "ca.pem";

const OTHER_CA: &str = "other-ca.pem";

fn write_certificates(dir: &Path, flaw: Option<Flaw>) -> io::Result<()> {
    let authority = Authority::new("distlock test authority")?;
    authority.write(&dir.join(CA))?;
    authority.sign_with(dir, "server", flaw)?;
    Authority::new("another authority")?.write(&dir.join(OTHER_CA))
}
