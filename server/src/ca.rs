//! `godwit ca`: the cluster's authority and secret, and its nodes' certificates, as files.
//!
//! Files are never overwritten: a new authority or key in the place of one in use takes the cluster apart.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use godwit_net::CertificateAuthority;
use godwit_net::tls::write_private;

use crate::config::SECRET_BYTES;

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const SECRET: &str = "cluster.secret";

/// Makes an authority and the cluster's secret; tells the files written.
pub(crate) fn init(cluster: &str, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let authority = CertificateAuthority::generate(cluster)?;
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let secret_path = dir.join(SECRET);
    refuse_if_there([&secret_path])?;
    let mut written = write_pair(dir, CA_CERTIFICATE, authority.cert_pem(), CA_KEY, &authority.key_pem())?;
    let secret = blake3::Hash::from(random_bytes()?);
    write_private(&secret_path, &format!("{}\n", secret.to_hex()))?;
    written.push(secret_path);
    Ok(written)
}

/// Makes a node's certificate and key; tells the files written.
pub(crate) fn issue(dir: &Path, node: &str) -> anyhow::Result<Vec<PathBuf>> {
    let read = |name: &str| {
        let path = dir.join(name);
        let failed = || format!("reading {}; `godwit ca init` makes it", path.display());
        std::fs::read_to_string(&path).with_context(failed)
    };
    let authority = CertificateAuthority::from_pem(&read(CA_CERTIFICATE)?, &read(CA_KEY)?)?;
    let issued = authority.issue(node)?;
    write_pair(dir, &format!("{node}.pem"), &issued.cert_pem, &format!("{node}.key"), &issued.key_pem)
}

fn write_pair(
    dir: &Path,
    certificate_name: &str,
    certificate: &str,
    key_name: &str,
    key: &str,
) -> anyhow::Result<Vec<PathBuf>> {
    let (certificate_path, key_path) = (dir.join(certificate_name), dir.join(key_name));
    refuse_if_there([&certificate_path, &key_path])?;
    write_private(&key_path, key)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&certificate_path)?;
        file.write_all(certificate.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", certificate_path.display()))?;
    Ok(vec![certificate_path, key_path])
}

fn refuse_if_there<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    match paths.into_iter().find(|path| path.exists()) {
        Some(there) => anyhow::bail!("{} is there already and is not overwritten", there.display()),
        None => Ok(()),
    }
}

fn random_bytes() -> anyhow::Result<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    let entropy = rustls::crypto::ring::default_provider().secure_random;
    entropy.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes)
}
