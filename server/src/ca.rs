//! `godwit ca`: the cluster's authority and its nodes' certificates, as PEM files.
//!
//! Files are never overwritten: a new authority or key in the place of one in use takes the cluster apart.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use godwit_net::CertificateAuthority;
use godwit_net::tls::write_private;

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// Makes an authority; tells the files written.
pub(crate) fn init(cluster: &str, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let authority = CertificateAuthority::generate(cluster)?;
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    write_pair(dir, CA_CERTIFICATE, authority.cert_pem(), CA_KEY, &authority.key_pem())
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
    if let Some(there) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
        anyhow::bail!("{} is there already and is not overwritten", there.display());
    }
    write_private(&key_path, key)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&certificate_path)?;
        file.write_all(certificate.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("writing {}", certificate_path.display()))?;
    Ok(vec![certificate_path, key_path])
}
