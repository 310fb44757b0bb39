//! Sites that are judged as one: an active site and the inactive ones it was moved from.
//!
//! Retention and the WAL that goes with it take the chain as one list, by the active site's rules.
//! The schedule does not, other than PGHoard's: a basebackup of the cluster before an upgrade
//! restores nothing of the one after it, so a site begins with one of its own at once. An origin
//! that is active still backs up a cluster of its own: it judges itself.

use alloc::vec::Vec;

use crate::file::Site;
use crate::policy::{Policy, SitePolicy};
use crate::state::{SiteState, State};

#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    pub name: &'a Site,
    pub site: &'a SiteState,
}

#[derive(Debug)]
pub struct Chain<'a> {
    /// Of the active site.
    pub rules: &'a SitePolicy,
    /// The active site first, then its origins.
    pub links: Vec<Link<'a>>,
}

impl<'a> Chain<'a> {
    /// The chain that a site belongs to; `None` for an inactive one that no active site was moved
    /// from. `unknown` stands for what the log has not heard of.
    pub fn of(
        name: &'a Site,
        policy: &'a Policy,
        state: &'a State,
        unknown: &'a SiteState,
    ) -> Option<Chain<'a>> {
        let own = policy.sites.get(name).filter(|site| site.active);
        let (head, rules) = own.map(|rules| (name, rules)).or(policy.heir(name))?;
        let inactive = |origin: &&Site| policy.sites.get(*origin).is_some_and(|site| !site.active);
        let origins = rules.origins.iter().filter(inactive);
        let links = core::iter::once(head).chain(origins).map(|name| Link {
            name,
            site: state.sites.get(name).unwrap_or(unknown),
        });
        Some(Chain {
            rules,
            links: links.collect(),
        })
    }
}

/// Whether two sites may hold WAL of one cluster, whose numbers can be compared. Doubt says yes,
/// which only keeps more.
pub fn alike(one: &SiteState, other: &SiteState) -> bool {
    let ids = one.servers.system_id.zip(other.servers.system_id);
    ids.is_none_or(|(one, other)| one == other)
}
