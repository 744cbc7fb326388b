//! The Supabase CLI itself, `supabase db push`: what it applies and what `cargo xtask migrate` applies is the same, and each takes
//! the other's work for done.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use ihuza_sim::migrate;
use uuid::Uuid;

use crate::schema::dump;
use crate::support::{Db, root};

/// `SUPABASE_BIN`, else the pinned package.
fn program() -> PathBuf {
    let program = std::env::var_os("SUPABASE_BIN")
        .map_or_else(|| root().join("node_modules/@supabase/cli-linux-x64/bin/supabase"), PathBuf::from);
    assert!(
        program.is_file(),
        "no Supabase CLI at {}: run `cargo xtask setup`, or set SUPABASE_BIN",
        program.display()
    );
    program
}

/// A folder that the CLI may write to: a project with our migrations, and a home.
struct Project(PathBuf);

impl Project {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("ihuza-supabase-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(folder.join("supabase")).unwrap();
        std::os::unix::fs::symlink(root().join("migrations"), folder.join("supabase/migrations")).unwrap();
        Self(folder)
    }

    /// Pushes to the database at `url`; what the CLI said.
    async fn push(&self, url: &str) -> String {
        let mut call = Command::new(program());
        call.args(["db", "push", "--yes", "--skip-vault", &format!("--remote={url}?sslmode=disable")])
            .current_dir(&self.0)
            .env("HOME", &self.0)
            .env("SUPABASE_TELEMETRY_DISABLED", "1")
            .env("DO_NOT_TRACK", "1")
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || call.output()).await.unwrap().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
        said
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn what_the_supabase_cli_pushed_is_what_we_migrate_and_each_knows_the_others_work() {
    let files = migrate::read(&root().join("migrations")).unwrap();
    let versions: Vec<String> = files.iter().map(|file| file.version.clone()).collect();
    let project = Project::new();

    let (mut pushed, pushed_at) = Db::empty_at().await;
    let said = project.push(&pushed_at).await;
    for version in &versions {
        assert!(said.contains(&format!("Applying migration {version}_")), "{version} is not in\n{said}");
    }
    let after = migrate::apply(&mut pushed, &files, false).await.unwrap();
    assert_eq!((after.applied, after.changed, after.unknown), (vec![], vec![], vec![]), "we have nothing left to do");
    assert_eq!(after.skipped, versions);

    let (mut migrated, migrated_at) = Db::empty_at().await;
    migrate::apply(&mut migrated, &files, false).await.unwrap();
    let said = project.push(&migrated_at).await;
    assert!(said.contains("up to date") && !said.contains("Applying"), "{said}");
    assert_eq!(dump(&pushed).await, dump(&migrated).await);
}
