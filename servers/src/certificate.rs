//! Certificates made on the spot, for the servers that speak TLS.

use std::{fs, io, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

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
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let hosts = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(hosts).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, format!("distlock test {name}"));
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        fs::write(dir.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem())
    }
}
