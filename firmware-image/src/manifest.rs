//! The list of everything inside: an inventory (SBOM), and what two images are compared by.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome, failure};
use crate::inputs::{Package, workspace};
use crate::program::{Machine, PACKAGE};

#[derive(Debug, Serialize)]
pub struct Manifest<'a> {
    pub version: &'a str,
    pub machine: &'static str,
    /// The file that it lies beside.
    pub sha256: String,
    pub parts: &'a [Part],
    pub packages: &'a [Package],
    pub crates: Vec<Crate>,
}

/// What the image is made of, as it is in the image.
#[derive(Debug, Serialize)]
pub struct Part {
    pub name: String,
    pub bytes: usize,
    pub sha256: String,
}

impl Part {
    pub fn of(name: impl Into<String>, bytes: &[u8]) -> Part {
        Part {
            name: name.into(),
            bytes: bytes.len(),
            sha256: hex::encode(Sha256::digest(bytes)),
        }
    }
}

/// A crate that is linked into the program.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Crate {
    pub name: String,
    pub version: String,
    pub licence: String,
    /// Of the crate's file at the registry; our own have none.
    pub sha256: Option<String>,
}

/// What `cargo metadata` tells, as far as it is asked for here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Described>,
    resolve: Resolved,
}

#[derive(Deserialize)]
struct Described {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<String>,
}

#[derive(Deserialize)]
struct Resolved {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// `null` is an ordinary one; the others are for tests and build scripts.
#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// By name and version, out of `Cargo.lock` and the crates' own words, without a network.
pub fn crates(machine: Machine) -> Outcome<Vec<Crate>> {
    let about = |what: String| failure(format!("cargo metadata: {what}"));
    let told = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .arg("--filter-platform")
        .arg(format!("{}-unknown-linux-gnu", machine.name()))
        .current_dir(workspace())
        .output()
        .map_err(|error| about(error.to_string()))?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr);
        return Err(about(said.trim().to_owned()));
    }
    let metadata = serde_json::from_slice(&told.stdout).map_err(|e| about(e.to_string()))?;
    let lock = workspace().join("Cargo.lock");
    let lock = String::from_utf8_lossy(&crate::failure::read(&lock)?).into_owned();
    linked(&metadata, &checksums(&lock))
}

fn linked(
    metadata: &Metadata,
    checksums: &BTreeMap<(String, String), String>,
) -> Outcome<Vec<Crate>> {
    let nodes = metadata.resolve.nodes.iter();
    let nodes: BTreeMap<&str, &Node> = nodes.map(|node| (node.id.as_str(), node)).collect();
    let packages = metadata.packages.iter();
    let packages: BTreeMap<&str, &Described> = packages.map(|p| (p.id.as_str(), p)).collect();
    let root = metadata.packages.iter().find(|p| p.name == PACKAGE);
    let root = root.ok_or_else(|| failure(format!("cargo metadata knows no {PACKAGE}")))?;
    let mut seen = BTreeSet::new();
    let mut open = vec![root.id.as_str()];
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let needed = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let linked = needed.filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        open.extend(linked.map(|dep| dep.pkg.as_str()));
    }
    let mut crates = Vec::new();
    for package in seen.into_iter().filter_map(|id| packages.get(id)) {
        crates.push(described(package, checksums)?);
    }
    crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(crates)
}

fn described(
    package: &Described,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<Crate, Failure> {
    let licence = package.license.as_ref().or(package.license_file.as_ref());
    let licence = licence.ok_or_else(|| {
        failure(format!(
            "crate '{}' says no licence; nothing without one is shipped",
            package.name
        ))
    })?;
    let key = (package.name.clone(), package.version.clone());
    Ok(Crate {
        licence: licence.clone(),
        sha256: checksums.get(&key).cloned(),
        name: key.0,
        version: key.1,
    })
}

/// By name and version. Of the lock's form only this is needed: a table a package, a line a fact.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let tables = lock.split("[[package]]");
    let found = tables.filter_map(|table| {
        let fact = |key: &str| {
            let line = table.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
        };
        Some(((fact("name")?, fact("version")?), fact("checksum")?))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real ones: whatever the program is linked from has a name, a licence and a digest.
    #[test]
    fn every_crate_in_the_program_is_told() {
        let crates = crates(Machine::X86_64).unwrap();
        let of = |name: &str| crates.iter().find(|found| found.name == name);
        assert_eq!(of("serde").unwrap().licence, "MIT OR Apache-2.0");
        assert_eq!(of("pghoard").unwrap().sha256, None);
        assert_eq!(of("tempfile"), None, "only tests link it");
        for found in &crates {
            let ours = found.name == "pghoard" || found.name.starts_with("pghoard-");
            assert_eq!(found.sha256.is_none(), ours, "{}", found.name);
        }
    }
}
