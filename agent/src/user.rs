//! The accounts of this machine, read from /etc/passwd and /etc/group. Own lines, because a static binary has no name
//! service to ask: glibc's would have to be loaded into it, in the very version it was built with.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Who jobs run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Every group it belongs to, its own first.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: String,
}

/// No jobs can run as this user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The file system said no.
    #[error("could not read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// There is none of this name.
    #[error("there is no user {0} for the jobs: install the package, or run `useradd --create-home {0}`")]
    Missing(String),
    /// Refused unless asked for.
    #[error("jobs would run as root, as user {0}: set runner-user to another one, or runner-allow-root to true")]
    Root(String),
}

impl Account {
    /// The account of this name in the files below `etc`, which is /etc.
    ///
    /// # Errors
    /// When there is none, or it is root's and root is not allowed.
    pub fn find(etc: &Path, name: &str, allow_root: bool) -> Result<Self, UserError> {
        let read = |file: &str| {
            let path = etc.join(file);
            std::fs::read_to_string(&path)
                .map_err(|source| UserError::Read { path: path.display().to_string(), source })
        };
        let passwd = read("passwd")?;
        let mut account =
            passwd.lines().find_map(|line| entry(line, name)).ok_or_else(|| UserError::Missing(name.to_owned()))?;
        if account.uid == 0 && !allow_root {
            return Err(UserError::Root(name.to_owned()));
        }
        let others = read("group")?.lines().filter_map(|line| membership(line, name)).collect::<Vec<_>>();
        account.groups.extend(others.into_iter().filter(|gid| *gid != account.gid));
        Ok(account)
    }
}

/// `name:x:uid:gid:comment:home:shell`
fn entry(line: &str, name: &str) -> Option<Account> {
    let mut fields = line.split(':');
    if fields.next()? != name {
        return None;
    }
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1)?.into();
    let shell = fields.next().filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh").to_owned();
    Some(Account { name: name.to_owned(), uid, gid, groups: vec![gid], home, shell })
}

/// `group:x:gid:member,member`
fn membership(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    fields.next()?.split(',').any(|member| member == name).then_some(gid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        runners:x:7:7::/:/bin/false\n\
        broken\n\
        runner:x:1001:1002:GitHub Actions jobs:/home/runner:/bin/bash\n\
        bare:x:1003:1003::/home/bare:\n";
    const GROUP: &str =
        "root:x:0:\nrunner:x:1002:runner\nsudo:x:27:admin,runner\ndocker:x:998:runner,other\nrunners:x:7:runners\n";

    fn etc(passwd: &str, group: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("passwd"), passwd).expect("passwd");
        std::fs::write(dir.path().join("group"), group).expect("group");
        dir
    }

    #[test]
    fn an_account_keeps_every_group_it_was_put_into() {
        let etc = etc(PASSWD, GROUP);
        let account = Account::find(etc.path(), "runner", false).expect("found");
        assert_eq!((account.uid, account.gid), (1001, 1002));
        assert_eq!(account.groups, [1002, 27, 998]);
        assert_eq!((account.home.as_path(), account.shell.as_str()), (Path::new("/home/runner"), "/bin/bash"));
        assert_eq!(Account::find(etc.path(), "bare", false).expect("found").shell, "/bin/sh");
    }

    #[test]
    fn root_is_refused_for_jobs_unless_asked_for_under_any_name() {
        let etc = etc(&format!("{PASSWD}toor:x:0:0::/root:/bin/sh\n"), GROUP);
        for name in ["root", "toor"] {
            assert!(matches!(Account::find(etc.path(), name, false), Err(UserError::Root(_))));
            assert_eq!(Account::find(etc.path(), name, true).expect("asked for").uid, 0);
        }
    }

    #[test]
    fn a_missing_user_is_told_with_what_to_do() {
        let error = Account::find(etc(PASSWD, GROUP).path(), "builder", false).expect_err("missing").to_string();
        assert!(error.contains("useradd --create-home builder"), "{error}");
    }

    proptest! {
        #[test]
        fn any_lines_are_survived(passwd in any::<String>(), group in any::<String>()) {
            Account::find(etc(&passwd, &group).path(), "runner", false).ok();
        }
    }
}
