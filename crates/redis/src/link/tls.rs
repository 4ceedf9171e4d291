//! TLS by rustls with ring.

use std::sync::Arc;

use fred::{
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject},
    },
    rustls_native_certs::load_native_certs,
    types::config::{TlsConfig, TlsConnector, TlsHostMapping},
};

use super::{LinkError, TlsSettings, Topology};

pub(super) fn configure(
    settings: &TlsSettings,
    topology: &Topology,
) -> Result<TlsConfig, LinkError> {
    // The provider is named, so that it does not matter what others have installed.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError::Config(error.to_string()))?
        .with_root_certificates(roots(settings)?)
        .with_no_client_auth();
    let hostnames = match topology {
        // The nodes of a cluster know each other by address, but their certificates by name.
        Topology::Cluster { .. } => TlsHostMapping::DefaultHost,
        _ => TlsHostMapping::None,
    };
    Ok(TlsConfig { connector: TlsConnector::from(config), hostnames })
}

fn roots(settings: &TlsSettings) -> Result<RootCertStore, LinkError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &settings.ca_file else {
        // A broken certificate among the system's many is no reason to refuse all of them.
        roots.add_parsable_certificates(load_native_certs().certs);
        return match roots.is_empty() {
            true => Err(LinkError::Config("the system has no certificates to trust".to_owned())),
            false => Ok(roots),
        };
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        LinkError::Config(format!("certificates in `{}`: {error}", path.display()))
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
        let certificate = certificate.map_err(|error| unreadable(&error))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    match roots.is_empty() {
        true => Err(unreadable(&"none found")),
        false => Ok(roots),
    }
}
