//! A connection to the operator's database: over TLS and verified, unless it is on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::places;

/// Where a chore finds the database; the same words for all of them.
#[derive(clap::Args)]
pub struct Place {
    /// Where the database is; better DATABASE_URL in the environment than on the command line.
    #[arg(long, value_name = "URL", global = true)]
    db_url: Option<String>,
    /// Certificate authority of the database, in PEM form.
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

impl Place {
    /// Does `work` with a connection.
    pub fn run<T>(&self, work: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
        let url = match &self.db_url {
            Some(url) => url.clone(),
            None => places::set("DATABASE_URL").context("say where the database is: --db-url URL, or DATABASE_URL")?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not start the asynchronous runtime")?;
        runtime.block_on(async { work(open(&url, self.ca.as_deref()).await?).await })
    }
}

/// Opens a connection; `ca`: certificate authority of the database, in PEM form.
pub async fn open(url: &str, ca: Option<&Path>) -> Result<Client> {
    // The URL holds a password: it is not repeated in any message.
    let mut config: Config =
        url.parse().context("the database URL is not understood: write postgres://USER:PASSWORD@HOST:5432/DATABASE")?;
    config.application_name("ihuza-migrate");
    // `disable` can only have been asked for; `prefer` is what an URL without a word means.
    let plain = match config.get_ssl_mode() {
        SslMode::Disable => true,
        SslMode::Prefer => is_local(&config) && ca.is_none(),
        _ => false,
    };
    if plain {
        let (client, connection) = config.connect(NoTls).await.map_err(explain)?;
        tokio::spawn(connection);
        return Ok(client);
    }
    config.ssl_mode(SslMode::Require);
    let (client, connection) = config.connect(MakeRustlsConnect::new(tls(ca)?)).await.map_err(explain)?;
    tokio::spawn(connection);
    Ok(client)
}

/// Calls a function of one argument. Postgres' detail may hold a row: its message and hint are all that is told.
pub async fn call(client: &Client, function: &str, p: &Value) -> Result<Value> {
    match client.query_one(&format!("select public.{function}($1)"), &[p]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) => match error.as_db_error() {
            Some(said) => {
                bail!("{}{}", said.message(), said.hint().map(|hint| format!(": {hint}")).unwrap_or_default())
            }
            None => Err(error).with_context(|| format!("{function} was not answered")),
        },
    }
}

fn is_local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"),
        Host::Unix(_) => true,
    })
}

fn tls(ca: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(file)
                .with_context(|| format!("could not read certificates from {}", file.display()))?;
            for certificate in certificates {
                let certificate = certificate.with_context(|| format!("{} is not PEM", file.display()))?;
                roots.add(certificate).with_context(|| format!("{} holds a bad certificate", file.display()))?;
            }
            if roots.is_empty() {
                bail!("{} holds no certificate", file.display());
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS could not be set up")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn explain(error: tokio_postgres::Error) -> anyhow::Error {
    let text = format!("{:#}", anyhow::Error::new(error));
    let advice = if text.contains("certificate") || text.contains("UnknownIssuer") {
        "\n  to do: download the database's certificate (Supabase: Database settings) and name it with --ca FILE"
    } else if text.contains("password") || text.contains("authentication") {
        "\n  to do: check user and password; special characters of the password must be percent-encoded"
    } else {
        "\n  to do: check host and port, and that this machine may connect"
    };
    anyhow::anyhow!("no connection to the database: {text}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(url: &str) -> Option<bool> {
        url.parse().ok().map(|config: Config| is_local(&config))
    }

    #[test]
    fn only_this_machine_may_be_spoken_to_in_the_clear() {
        assert_eq!(local("postgres://a:b@127.0.0.1:5432/c"), Some(true));
        assert_eq!(local("postgres://a:b@localhost/c"), Some(true));
        assert_eq!(local("postgres://a:b@db.example.supabase.co/c"), Some(false));
    }
}
