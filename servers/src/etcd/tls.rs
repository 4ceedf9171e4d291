//! An etcd server behind TLS that knows its users.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    certificate::Authority,
    etcd::{EtcdServer, Ports, again, own_args, owned, run_etcdctl},
    process::temp_dir,
};

/// One member that speaks nothing but TLS, demands a certificate of its clients, and lets a user
/// do only what its role allows.
///
/// The server's certificate names `localhost` and `127.0.0.1`. Beside `root` there is one
/// [user](Self::user), who may read and write below one [prefix](Self::prefix), and nothing else.
/// The client's certificate names no user, so who gives no password is nobody.
#[derive(Debug)]
pub struct EtcdTls {
    server: EtcdServer,
}

impl EtcdTls {
    /// Makes an authority and certificates, starts a server with them, waits until it is healthy
    /// and switches authentication on.
    ///
    /// `&["--auth-token-ttl", "2"]` lets tokens end two seconds after their last use.
    ///
    /// # Errors
    /// As [`EtcdServer::start`], and [`io::ErrorKind::NotFound`] if `etcdctl` is not installed.
    pub fn start(args: &[&str]) -> io::Result<Self> {
        let mut server = again(|| {
            let ports = Ports::free()?;
            let dir = temp_dir("etcd-tls")?;
            write_certificates(&dir)?;
            let own = own_args("member", ports, &format!("member={}", ports.peer_url()));
            let all = [own, tls_args(ports, &dir), owned(args)].concat();
            let server = EtcdServer::spawn(ports, all, dir)?;
            server.wait_ready()?;
            Ok(server)
        })?;
        server.access = access(&server);
        let mut tls = Self { server };
        tls.switch_authentication_on()?;
        Ok(tls)
    }

    /// The server; its [`url`](EtcdServer::url) and [`endpoint`](EtcdServer::endpoint) are not
    /// those to use, and its [`etcdctl`](EtcdServer::etcdctl) is `root`.
    #[must_use]
    pub fn server(&self) -> &EtcdServer {
        &self.server
    }

    /// `https://localhost:PORT`, as etcd's own clients want it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        endpoint(&self.server)
    }

    /// `etcds://localhost:PORT`, without user and password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcds://localhost:{}", self.server.port())
    }

    /// The PEM file of the authority that signed the certificates of server and client.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.file(CA)
    }

    /// The PEM file of an authority that has nothing to do with this server.
    #[must_use]
    pub fn other_ca(&self) -> PathBuf {
        self.file(OTHER_CA)
    }

    /// The PEM file of the certificate that lets a client in.
    #[must_use]
    pub fn client_certificate(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// The PEM file of its key.
    #[must_use]
    pub fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }

    /// The PEM file of a certificate that was signed by the [other authority](Self::other_ca).
    #[must_use]
    pub fn other_certificate(&self) -> PathBuf {
        self.file("stranger.pem")
    }

    /// The PEM file of its key.
    #[must_use]
    pub fn other_key(&self) -> PathBuf {
        self.file("stranger.key")
    }

    /// The user who is not `root`.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The user's password.
    #[must_use]
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// What the keys that the user may read and write begin with.
    #[must_use]
    pub fn prefix(&self) -> &'static str {
        PREFIX
    }

    /// As [`EtcdServer::etcdctl`], as the [user](Self::user).
    ///
    /// # Errors
    /// As [`EtcdServer::etcdctl`].
    pub fn etcdctl(&self, args: &[&str]) -> io::Result<String> {
        run_etcdctl(&[access(&self.server), credentials(USER, PASSWORD)].concat(), args)
    }

    /// The server alone, for who wants to keep it longer.
    #[must_use]
    pub fn into_server(self) -> EtcdServer {
        self.server
    }

    fn switch_authentication_on(&mut self) -> io::Result<()> {
        let password = format!("{USER}:{PASSWORD}");
        let steps: [&[&str]; 8] = [
            &["user", "add", &format!("{ROOT}:{PASSWORD}")],
            &["role", "add", ROOT],
            &["user", "grant-role", ROOT, ROOT],
            &["user", "add", &password],
            &["role", "add", ROLE],
            &["role", "grant-permission", "--prefix=true", ROLE, "readwrite", PREFIX],
            &["user", "grant-role", USER, ROLE],
            &["auth", "enable"],
        ];
        for step in steps {
            self.server.etcdctl(step)?;
        }
        self.server.access.extend(credentials(ROOT, PASSWORD));
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.server.dir().join(name)
    }
}

const CA: &str = "ca.pem";

const OTHER_CA: &str = "other-ca.pem";

const ROOT: &str = "root";

const USER: &str = "distlock";

const ROLE: &str = "locks";

const PASSWORD: &str = "secret";

const PREFIX: &str = "locks/";

fn endpoint(server: &EtcdServer) -> String {
    format!("https://localhost:{}", server.port())
}

/// What `etcdctl` must be told to get in at all.
fn access(server: &EtcdServer) -> Vec<String> {
    let path = |name| server.dir().join(name).display().to_string();
    vec![
        format!("--endpoints={}", endpoint(server)),
        format!("--cacert={}", path(CA)),
        format!("--cert={}", path("client.pem")),
        format!("--key={}", path("client.key")),
    ]
}

fn credentials(user: &str, password: &str) -> Vec<String> {
    vec![format!("--user={user}:{password}")]
}

/// Follows the arguments for plain HTTP, and wins over them.
fn tls_args(ports: Ports, dir: &Path) -> Vec<String> {
    let path = |name| dir.join(name).display().to_string();
    let (ca, cert, key) = (path(CA), path("server.pem"), path("server.key"));
    let listen = format!("https://127.0.0.1:{}", ports.client);
    let pairs = [
        ["--listen-client-urls", &listen],
        ["--advertise-client-urls", &listen],
        ["--trusted-ca-file", &ca],
        ["--cert-file", &cert],
        ["--key-file", &key],
    ];
    [owned(pairs.as_flattened()), owned(&["--client-cert-auth"])].concat()
}

fn write_certificates(dir: &Path) -> io::Result<()> {
    let authority = Authority::new("distlock test authority")?;
    authority.write(&dir.join(CA))?;
    authority.sign(dir, "server")?;
    authority.sign(dir, "client")?;
    let other = Authority::new("another authority")?;
    other.write(&dir.join(OTHER_CA))?;
    other.sign(dir, "stranger")
}
