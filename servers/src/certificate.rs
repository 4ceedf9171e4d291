//! Certificates made on the spot, for the servers that speak TLS.

use std::{fs, io, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

/// What can be wrong with a certificate of an authority that is trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Flaw {
    /// Its time is over.
    Expired,
    /// It names another host.
    Name,
}

/// An authority that signs certificates; its key is never written.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one, which nobody trusts yet.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Writes the authority's own certificate as PEM.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.certificate)
    }

    /// Writes `name.pem` and `name.key` for somebody at `localhost` and `127.0.0.1`.
    pub(crate) fn sign(&self, dir: &Path, name: &str) -> io::Result<()> {
        self.sign_with(dir, name, None)
    }

    /// The same, with something wrong with it.
    pub(crate) fn sign_with(&self, dir: &Path, name: &str, flaw: Option<Flaw>) -> io::Result<()> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let hosts = match flaw {
            Some(Flaw::Name) => vec!["elsewhere.example".to_owned()],
            _ => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        };
        let mut params = CertificateParams::new(hosts).map_err(io::Error::other)?;
        if flaw == Some(Flaw::Expired) {
            (params.not_before, params.not_after) =
                (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        params.distinguished_name.push(DnType::CommonName, format!("distlock test {name}"));
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())
    }
}
