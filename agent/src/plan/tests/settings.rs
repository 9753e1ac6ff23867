//! What becomes of the settings that an operator sends.

use super::*;

#[test]
fn unsound_settings_are_refused_with_all_that_is_wrong_and_change_nothing() {
    let (state, effects) = configured(connected(), Some("c"), Err("heartbeat-seconds: 0".into()));
    assert_eq!(refusals(&effects), [true]);
    assert_eq!((state.settings_revision.as_str(), state.log_level()), ("", LevelFilter::INFO));
    let (_, again) = step(state, command("c", Command::Configure(Wanted::default())));
    assert_eq!(refusals(&again), [true], "the same command is answered as before");
}

#[test]
fn a_log_level_reverts_by_itself_when_its_time_is_up() {
    let (start, boot_ms) = (Instant::now(), 0);
    let at = |seconds| Now { instant: start + Duration::from_secs(seconds), boot_ms };
    let set = Command::SetLogLevel { level: Ok(Some(LevelFilter::TRACE)), period: Duration::from_secs(600) };
    let (state, effects) = plan(connected(), command("l", set), at(0));
    assert_eq!((refusals(&effects), state.log_level()), (vec![false], LevelFilter::TRACE));
    assert_eq!(state.wake_at(start), Some(at(600).instant));
    let (state, _) = plan(state, Input::Tick, at(599));
    assert_eq!(state.log_level(), LevelFilter::TRACE);
    let (state, _) = plan(state, Input::Tick, at(600));
    assert_eq!(state.log_level(), LevelFilter::INFO);
    let unknown = Command::SetLogLevel { level: Err(77), period: Duration::from_secs(1) };
    assert_eq!(refusals(&plan(state, command("u", unknown), at(601)).1), [true]);
}

/// One that has just taken over does not know yet what the pool wants.
#[test]
fn what_an_operator_does_not_say_stays_as_it_was_said_last() {
    let runner = Some(vec![("hook-job-started", "/a.sh".to_owned())]);
    let agent = Some(vec![("guard-runtime-seconds", "3600".to_owned())]);
    let said = Wanted { revision: "1".into(), agent, runner };
    let (state, _) = step(connected(), command("c1", Command::Configure(said.clone())));
    let silent = Wanted { revision: "2".into(), ..Wanted::default() };
    let welcome = Input::Connected { vm_name: "vm".into(), heartbeat: None, wanted: silent };
    let (_, effects) = step(state, welcome);
    let [Effect::Configure { wanted, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((wanted.revision.as_str(), wanted.values()), ("2", said.values()));
}

#[test]
fn what_was_wrong_with_settings_is_told_until_sound_ones_come() {
    let (state, effects) = configured(connected(), Some("c1"), Err("no such level".into()));
    assert_eq!(refusals(&effects), [true]);
    let (state, _) = step(state, Input::Disconnected { error: "gone".into() });
    let (state, _) = step(state, hello());
    assert!(state.trouble().contains("no such level"), "a new session mends nothing: {}", state.trouble());
    let sound = Configured { limits: Limits::default(), level: LevelFilter::INFO };
    let (state, effects) = configured(state, Some("c2"), Ok(sound));
    assert_eq!((refusals(&effects), state.trouble().as_str()), (vec![false], ""));
}
