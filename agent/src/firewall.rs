//! What keeps a job from the machine's cloud identity: nothing that runs as the runner's user, and nothing forwarded
//! for a container, reaches the metadata server's HTTP. The same address also serves DNS and NTP, which stay.
//!
//! Matched is the user, not the job's cgroup: a container is in another cgroup, and a job that may become root could
//! leave either; such a job can also just remove the rules, and is kept from nothing but by what the operator believes.

use std::fmt::Write;

/// Whether jobs may ask the metadata server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MetadataAccess {
    /// They have no cloud identity.
    #[default]
    Blocked,
    /// They may use the instance's service account.
    Allowed,
}

/// For nft: the whole table, replaced in one transaction, so it can be applied any number of times.
#[must_use]
pub fn ruleset(access: MetadataAccess, uid: u32) -> String {
    // A table must be there to be deleted.
    let mut rules = String::from("table inet miglet\ndelete table inet miglet\n");
    if access == MetadataAccess::Allowed {
        return rules;
    }
    rules.push_str("table inet miglet {\n");
    for (hook, whose) in [("output", format!("meta skuid {uid} ")), ("forward", String::new())] {
        // Writing to a String cannot fail.
        writeln!(rules, "  chain {hook} {{\n    type filter hook {hook} priority filter; policy accept;").ok();
        for server in ["ip daddr 169.254.169.254", "ip6 daddr fd20:ce::254"] {
            writeln!(rules, "    {whose}{server} tcp dport {{ 80, 443 }} counter drop").ok();
        }
        rules.push_str("  }\n");
    }
    rules.push_str("}\n");
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_drops_http_of_the_runner_and_of_containers_and_nothing_else() {
        let rules = ruleset(MetadataAccess::Blocked, 1001);
        let drops: Vec<&str> = rules.lines().map(str::trim).filter(|line| line.ends_with("drop")).collect();
        assert_eq!(
            drops,
            [
                "meta skuid 1001 ip daddr 169.254.169.254 tcp dport { 80, 443 } counter drop",
                "meta skuid 1001 ip6 daddr fd20:ce::254 tcp dport { 80, 443 } counter drop",
                "ip daddr 169.254.169.254 tcp dport { 80, 443 } counter drop",
                "ip6 daddr fd20:ce::254 tcp dport { 80, 443 } counter drop",
            ]
        );
        assert_eq!(rules.matches("policy accept").count(), 2);
    }

    #[test]
    fn applying_twice_replaces_and_allowing_removes() {
        let replace = "table inet miglet\ndelete table inet miglet\n";
        assert_eq!(ruleset(MetadataAccess::Allowed, 1001), replace);
        assert!(ruleset(MetadataAccess::Blocked, 1001).starts_with(replace));
    }
}
