//! What is measured and what it is compared with, each a process of its own on the other core.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PATIENCE: Duration = Duration::from_secs(20);
/// How the relay is deployed; it is measured with the same settings of its allocator.
const UNIT: &str = include_str!("../../../../deploy/relay/ihuza-relay.service");
const ALLOCATOR: &str = "_RJEM_MALLOC_CONF";

/// A process that does not outlive the measurement.
pub struct Process {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `taskset` becomes the program it starts, so that its id is the program's.
fn pinned(core: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Where the relay is to find everything.
pub struct RelaySettings<'a> {
    pub program: &'a Path,
    pub core: usize,
    /// For its settings, its journal and its log.
    pub directory: &'a Path,
    pub sip: SocketAddr,
    pub model_url: &'a str,
    pub function_url: &'a str,
    pub ca_file: Option<&'a Path>,
}

/// Starts the relay and waits until calls are welcome.
pub fn relay(settings: &RelaySettings) -> Result<Process> {
    let RelaySettings { program, core, directory, sip, model_url, function_url, ca_file } = settings;
    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let ca_file = ca_file.map(|file| format!("ca_file = {:?}", file.display().to_string())).unwrap_or_default();
    let text = format!(
        r#"
[sip]
udp = "{sip}"
[media]
bind = "127.0.0.1"
ports = "10000-65000"
[limits]
calls = 4000
calls_per_second = 10000
calls_per_minute_and_caller = 10000
[model]
url = "{model_url}"
api_key_env = "MODEL_KEY"
{ca_file}
[session]
url = "{function_url}"
key_env = "FUNCTION_KEY"
[journal]
directory = {:?}
[http]
listen = "{http}"
[[trunk]]
name = "load"
sources = ["127.0.0.1"]
calls = 4000
[[trunk.did]]
number = "+250788000100"
agent = "measured"
locale = "en"
"#,
        directory.join("journal").display().to_string()
    );
    let file = directory.join("relay.toml");
    std::fs::write(&file, text)?;
    let log = std::fs::File::create(directory.join("relay.log"))?;
    let mut command = pinned(*core, program);
    command.args(["run", "--config"]).arg(&file).env("MODEL_KEY", "for-measuring").env("FUNCTION_KEY", "for-measuring");
    command.env(ALLOCATOR, allocator().context("the unit has no settings of the allocator")?);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let process = Process { child, _stdin: None };
    let deadline = Instant::now() + PATIENCE;
    while !healthy(http) {
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(directory.join("relay.log")).unwrap_or_default();
            bail!("the relay does not start: {log}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(process)
}

fn allocator() -> Option<&'static str> {
    let settings = UNIT.lines().filter_map(|line| line.strip_prefix("Environment="));
    settings
        .filter_map(|setting| setting.split_once('='))
        .find_map(|(name, value)| (name == ALLOCATOR).then_some(value))
}

fn healthy(http: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
    };
    ask().is_ok_and(|answer| answer.contains(" 200 "))
}

/// A free UDP port for SIP; below those that the kernel gives out by itself, so that it stays free.
pub fn sip_address() -> Result<SocketAddr> {
    let free = (5070..6000).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    free.into_iter().find(|address| UdpSocket::bind(address).is_ok()).context("no free port for SIP")
}

/// Starts the plain forwarder for streams between these ports; what it is to be sent to instead, in their order.
pub fn forwarder(core: usize, ports: &[(u16, u16)]) -> Result<(Process, Vec<(u16, u16)>)> {
    let program = std::env::current_exe()?;
    let mut command = pinned(core, &program);
    command.arg("forward").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the forwarder")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let stdout = child.stdout.take().context("no stdout")?;
    for (near, far) in ports {
        writeln!(stdin, "{near} {far}")?;
    }
    writeln!(stdin)?;
    let process = Process { child, _stdin: Some(stdin) };
    let lines = BufReader::new(stdout).lines().take(ports.len());
    let to = lines.map(|line| pair(&line?)).collect::<Result<_>>()?;
    Ok((process, to))
}

/// Two ports of a line.
pub fn pair(line: &str) -> Result<(u16, u16)> {
    let (near, far) = line.trim().split_once(' ').with_context(|| format!("not two ports: {line:?}"))?;
    Ok((near.parse()?, far.parse()?))
}

/// rtpengine in user space.
pub fn rtpengine(program: &Path, core: usize, ports: &[(u16, u16)]) -> Result<(Process, Vec<(u16, u16)>)> {
    let ng = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    ng.set_read_timeout(Some(Duration::from_millis(500)))?;
    let listen = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = pinned(core, program);
    command.args(["--foreground", "--table=-1", "--interface=127.0.0.1", "--num-threads=1", "--port-min=10000"]);
    command.args(["--port-max=30000", "--log-level=3", "--config-file=none", "--log-stderr"]);
    command.arg(format!("--listen-ng={listen}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process { child: command.spawn().context("cannot start rtpengine")?, _stdin: None };
    let deadline = Instant::now() + PATIENCE;
    while ask(&ng, listen, &[("command", "ping")]).is_err() {
        if Instant::now() > deadline {
            bail!("rtpengine does not answer");
        }
    }
    let mut to = Vec::new();
    for (at, (near, far)) in ports.iter().enumerate() {
        let id = format!("load-{at}");
        let offer = describe(*near);
        let offered = [("call-id", &*id), ("command", "offer"), ("from-tag", "a"), ("sdp", &offer)];
        let far_to = port_of(&ask(&ng, listen, &offered)?)?;
        let answer = describe(*far);
        let answered = [("call-id", &*id), ("command", "answer"), ("from-tag", "a"), ("sdp", &answer), ("to-tag", "b")];
        let near_to = port_of(&ask(&ng, listen, &answered)?)?;
        to.push((near_to, far_to));
    }
    Ok((process, to))
}

fn describe(port: u16) -> String {
    format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 8\r\na=sendrecv\r\n"
    )
}

fn port_of(answer: &str) -> Result<u16> {
    let media = answer.split("m=audio ").nth(1).with_context(|| format!("no media in {answer:?}"))?;
    Ok(media.split(' ').next().unwrap_or_default().parse()?)
}

/// One command of the ng protocol: a cookie and a bencoded dictionary each way.
fn ask(ng: &UdpSocket, to: SocketAddr, fields: &[(&str, &str)]) -> Result<String> {
    let sorted: BTreeMap<_, _> = fields.iter().copied().collect();
    // By its cookie an answer is known from a late one to something before.
    let cookie = format!("{:x}", crate::clock::now());
    let mut text = format!("{cookie} d");
    for (key, value) in sorted {
        text.push_str(&format!("{}:{key}{}:{value}", key.len(), value.len()));
    }
    text.push('e');
    ng.send_to(text.as_bytes(), to)?;
    loop {
        let mut answer = [0; 4096];
        let length = ng.recv(&mut answer)?;
        let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
        if let Some(answer) = answer.strip_prefix(&cookie) {
            return Ok(answer.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_settings_of_the_allocator_are_found() {
        assert!(allocator().is_some_and(|settings| settings.contains("tcache_max:")), "{UNIT}");
    }
}
