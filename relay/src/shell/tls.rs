//! TLS towards the model.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio_websockets::Connector;

/// Why the model's server could not be told from another.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of `model.ca_file`.
    #[error("certificates in {0} cannot be read: {1}")]
    File(String, pem::Error),
    /// It has none.
    #[error("there is no certificate in {0}: model.ca_file must be PEM with BEGIN CERTIFICATE")]
    Empty(String),
    /// One of them is no certificate.
    #[error("a certificate in {0} is damaged: {1}")]
    Damaged(String, rustls::Error),
}

/// Trusts the public authorities, and besides them those in `ca_file`.
pub fn connector(ca_file: Option<&Path>) -> Result<Connector, TlsError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = ca_file {
        let name = file.display().to_string();
        let read = CertificateDer::pem_file_iter(file).map_err(|error| TlsError::File(name.clone(), error))?;
        let certificates: Vec<_> =
            read.collect::<Result<_, _>>().map_err(|error| TlsError::File(name.clone(), error))?;
        if certificates.is_empty() {
            return Err(TlsError::Empty(name));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| TlsError::Damaged(name.clone(), error))?;
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Connector::Rustls(tokio_rustls::TlsConnector::from(Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(content: Option<&str>) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let path = std::env::temp_dir().join(format!(
            "ihuza-relay-ca-{}-{:08x}.pem",
            std::process::id(),
            crate::shell::call::dice()
        ));
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let refused = connector(Some(&path)).map(|_| ()).unwrap_err().to_string();
        let _ = std::fs::remove_file(path);
        refused
    }

    #[test]
    fn a_file_that_vouches_for_nobody_is_refused() {
        assert!(problem(None).contains("cannot be read"));
        assert!(problem(Some("nothing")).contains("no certificate"));
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(problem(Some(damaged)).contains("damaged"));
    }
}
