-- Walks the main paths of the RPCs on a fresh database: psql -v ON_ERROR_STOP=1 -f tests/sql/smoke.sql
-- Time is turned with the argument `now`; nothing is left behind (one transaction, rolled back).
\set ON_ERROR_STOP on
\set QUIET on
set client_min_messages = warning;
begin;
set local role service_role;
set local plpgsql.check_asserts = on;

-- Helpers ------------------------------------------------------------------------------------------------------------

create function pg_temp.at(p_seconds numeric) returns timestamptz language sql immutable as
  $$ select '2030-01-01 08:00:00+00'::timestamptz + make_interval(secs => p_seconds::double precision) $$;

create function pg_temp.token(p_n integer) returns text language sql immutable as
  $$ select '00000000-0000-4000-8000-' || lpad(p_n::text, 12, '0') $$;

create function pg_temp.call(p_ref text, p_from text, p_ended numeric default -5) returns uuid language sql as $$
  insert into public.voice_calls (origin, provider_call_id, from_number, to_number, status, started_at, answered_at, ended_at, locale)
  values ('mtn_sip', p_ref, p_from, '+250788000000', 'completed', pg_temp.at(p_ended - 60), pg_temp.at(p_ended - 55), pg_temp.at(p_ended), 'en')
  returning id
$$;

create function pg_temp.notify(p_ref text, p_token integer, p_at numeric, p_phone text default null, p_correlation text default null) returns jsonb
language sql as $$
  select public.begin_call_notification(jsonb_build_object(
    'correlation_id', coalesce(p_correlation, 'corr-' || p_ref), 'call_ref', p_ref, 'phone_number', p_phone, 'lease_token', pg_temp.token(p_token),
    'lease_seconds', 60, 'unknown_wait_seconds', 120, 'now', pg_temp.at(p_at)))
$$;

create function pg_temp.sms(p_id text, p_from text, p_text text, p_token integer, p_at numeric, p_keyword text default null, p_limit integer default 120)
returns jsonb language sql as $$
  select public.begin_sms_turn(jsonb_build_object(
    'correlation_id', 'corr-' || p_id, 'provider', 'mtn', 'provider_message_id', p_id, 'from', p_from, 'to', '8080', 'text', p_text,
    'received_at', pg_temp.at(p_at), 'keyword', p_keyword, 'lease_token', pg_temp.token(p_token), 'lease_seconds', 60,
    'unknown_wait_seconds', 120, 'history_limit', 20, 'rate_limit_per_hour', p_limit, 'now', pg_temp.at(p_at)))
$$;

create function pg_temp.again(p_session text, p_token integer, p_at numeric) returns jsonb language sql as $$
  select public.begin_sms_turn(jsonb_build_object('session_id', p_session, 'correlation_id', 'again', 'lease_token', pg_temp.token(p_token),
    'lease_seconds', 60, 'unknown_wait_seconds', 120, 'history_limit', 20, 'now', pg_temp.at(p_at)))
$$;

create function pg_temp.attempt(p_outcome text, p_at numeric, p_more jsonb default '{}') returns jsonb language sql as $$
  select jsonb_build_object('attempt', 1, 'outcome', p_outcome, 'started_at', pg_temp.at(p_at - 0.2), 'finished_at', pg_temp.at(p_at), 'duration_ms', 200) || p_more
$$;

create function pg_temp.delivery(p_claim jsonb, p_channel text, p_attempt jsonb, p_deadline numeric default 86400) returns jsonb language sql as $$
  select jsonb_build_object('id', p_claim -> 'delivery_ids' ->> p_channel, 'channel', p_channel, 'provider', case p_channel when 'sms' then 'mtn' else 'whatsapp' end,
    'recipient', p_claim -> 'profile' ->> 'phone_number', 'sender', 'EasyMO', 'purpose', case when p_claim ? 'notification_id' then 'call_summary'
      when p_claim ->> 'kind' = 'keyword' then 'keyword' else 'reply' end,
    'content', 'text', 'payload', '{"text": "text"}'::jsonb, 'deadline_at', pg_temp.at(p_deadline),
    'attempt', p_attempt || jsonb_build_object('attempt', (p_claim ->> 'attempt')::integer))
$$;

create function pg_temp.finish(p_claim jsonb, p_token integer, p_at numeric, p_deliveries jsonb, p_more jsonb default '{}') returns jsonb language sql as $$
  select case when p_claim ? 'notification_id' then
    public.finish_call_notification(jsonb_build_object('notification_id', p_claim ->> 'notification_id', 'lease_token', pg_temp.token(p_token),
      'correlation_id', p_claim ->> 'correlation_id', 'outcome', 'done', 'now', pg_temp.at(p_at),
      'summary', '{"language": "en", "headline": "A flat in Kicukiro", "points": ["300k a month"], "next_step": "We send matches", "intent": "rent", "source": "model"}'::jsonb,
      'message', '{"content": "summary", "language": "en", "routing": {"policy": "both"}, "renditions": {"sms": {"text": "summary", "encoding": "gsm7", "segments": 1}, "whatsapp": {"kind": "text", "text": "summary"}}}'::jsonb,
      'deliveries', p_deliveries) || p_more)
  else
    public.finish_sms_turn(jsonb_build_object('turn_id', p_claim ->> 'turn_id', 'lease_token', pg_temp.token(p_token),
      'correlation_id', p_claim ->> 'correlation_id', 'outcome', 'answered', 'now', pg_temp.at(p_at),
      'reply', '{"content": "answer", "language": "en", "intent": "budget", "agent_slug": "call-center", "source": "model", "routing": {}, "renditions": {"sms": {"text": "answer", "encoding": "gsm7", "segments": 1}, "whatsapp": {"kind": "text", "text": "answer"}}}'::jsonb,
      'deliveries', p_deliveries, 'providers', '[{"provider": "openai", "outcome": "accepted"}]'::jsonb) || p_more)
  end
$$;

create function pg_temp.report(p_at numeric, p_event jsonb) returns jsonb language sql as $$
  select public.record_delivery_events(jsonb_build_object('correlation_id', 'report', 'now', pg_temp.at(p_at),
    'events', jsonb_build_array('{"provider": "mtn"}'::jsonb || jsonb_build_object('occurred_at', pg_temp.at(p_at)) || p_event)))
$$;

create function pg_temp.due(p_token integer, p_at numeric, p_more jsonb default '{}') returns jsonb language sql as $$
  select public.claim_due_deliveries(jsonb_build_object('lease_token', pg_temp.token(p_token), 'lease_seconds', 60, 'unknown_wait_seconds', 120, 'limit', 50,
    'now', pg_temp.at(p_at)) || p_more)
$$;

create function pg_temp.results(p_token integer, p_at numeric, p_id text, p_attempt jsonb) returns jsonb language sql as $$
  select public.record_delivery_results(jsonb_build_object('lease_token', pg_temp.token(p_token), 'correlation_id', 'results', 'now', pg_temp.at(p_at),
    'results', jsonb_build_array(jsonb_build_object('id', p_id, 'attempt', p_attempt))))
$$;

create function pg_temp.status(p_id text) returns text language sql as $$ select status from public.message_delivery_log where id = p_id::uuid $$;

create function pg_temp.equal(p_got anyelement, p_wanted anyelement, p_what text) returns void language plpgsql as $$
begin
  assert p_got is not distinct from p_wanted, format('%s: got %s, wanted %s', p_what, p_got, p_wanted);
end
$$;

-- A call, its summary, a reply ------------------------------------------------------------------------------------------

do $$
declare
  v_call uuid := pg_temp.call('journey', '+250788100001');
  v_claim jsonb; v_same jsonb; v_done jsonb; v_turn jsonb; v_status jsonb; v_result jsonb;
begin
  insert into public.transcripts (call_id, seq, role, text, language)
  select v_call, n, case when n % 2 = 1 then 'user' else 'assistant' end, repeat(n::text, 1000), 'en' from generate_series(1, 20) n;
  perform pg_temp.equal(pg_temp.notify('nobody-knows', 1, 0) ->> 'decision', 'call_not_found', 'a call not there yet');
  perform pg_temp.equal(public.notification_status('{"correlation_id": "corr-nobody-knows"}') ->> 'status', 'call_not_found', 'its status');

  v_claim := pg_temp.notify('journey', 1, 0);
  perform pg_temp.equal(v_claim ->> 'decision', 'go', 'the first claim');
  assert (v_claim -> 'session' ->> 'created')::boolean and v_claim -> 'session' ->> 'status' = 'active';
  assert v_claim -> 'profile' ->> 'phone_number' = '+250788100001' and v_claim -> 'profile' ->> 'whatsapp' = 'unknown';
  assert v_claim -> 'client' ->> 'brand' = 'EasyMO' and v_claim -> 'summary' = 'null';
  assert length(v_claim #>> '{transcript,0,text}') > 0 and v_claim #>> '{transcript,-1,text}' like '2020%', 'the newest words come last';
  assert (select sum(length(t ->> 'text')) <= 16000 from jsonb_array_elements(v_claim -> 'transcript') t);
  assert v_claim -> 'agent' -> 'instructions' ->> 'en' like '%EasyMO%';

  v_same := pg_temp.notify('journey', 1, 1);
  perform pg_temp.equal(v_same - 'session' - 'transcript', v_claim - 'session' - 'transcript', 'the same token gets the same answer');
  perform pg_temp.equal(pg_temp.notify('journey', 2, 2), '{"decision": "busy", "retry_after_s": 59}'::jsonb, 'another is told to wait');
  perform pg_temp.equal(public.notification_status('{"correlation_id": "corr-journey"}') ->> 'status', 'working', 'status while it is worked');

  v_done := pg_temp.finish(v_claim, 1, 3, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 3, '{"provider_message_id": "s-1"}'))),
    '{"providers": [{"provider": "openai", "outcome": "accepted"}]}');
  perform pg_temp.equal(v_done ->> 'status', 'done', 'finished');
  perform pg_temp.equal(v_done #>> '{session,status}', 'follow_up', 'the session waits for the person');
  perform pg_temp.equal(v_done #>> '{deliveries,0,status}', 'sent', 'the message');
  perform pg_temp.equal(pg_temp.finish(v_claim, 1, 4, '[]'), v_done, 'finishing again changes nothing');
  perform pg_temp.equal(pg_temp.notify('journey', 3, 5, p_correlation => 'second'),
    '{"decision": "duplicate", "correlation_id": "corr-journey", "status": "done"}'::jsonb, 'asked for again');
  perform pg_temp.equal(pg_temp.notify((select id::text from public.call_summaries where call_id = v_call), 3, 5) ->> 'decision', 'duplicate', 'by summary id');
  perform pg_temp.equal(pg_temp.notify(v_call::text, 3, 5) ->> 'decision', 'duplicate', 'by call id');
  v_status := public.notification_status('{"correlation_id": "second"}');
  assert v_status ->> 'status' = 'done' and v_status ->> 'duplicate_of' = 'corr-journey' and v_status #>> '{deliveries,0,status}' = 'sent', v_status;
  assert public.notification_status('{"correlation_id": "never"}') is null;
  perform pg_temp.equal((select count(*)::integer from public.call_summaries where call_id = v_call), 1, 'one summary');

  perform pg_temp.report(10, jsonb_build_object('delivery_ref', v_claim -> 'delivery_ids' ->> 'sms', 'status', 'delivered'));
  perform pg_temp.equal(pg_temp.status(v_claim -> 'delivery_ids' ->> 'sms'), 'delivered', 'the report');

  v_turn := pg_temp.sms('in-1', '+250788100001', 'Change budget to 250k', 4, 60);
  perform pg_temp.equal(v_turn ->> 'decision', 'go', 'the reply');
  assert v_turn #>> '{session,id}' = v_claim #>> '{session,id}' and v_turn #>> '{session,status}' = 'active';
  perform pg_temp.equal(v_turn #>> '{call_summary,headline}', 'A flat in Kicukiro', 'with the summary of the call');
  perform pg_temp.equal(v_turn #>> '{history,0,text}', 'summary', 'with what we wrote');
  perform pg_temp.equal(v_turn #>> '{messages,0,text}', 'Change budget to 250k', 'the message');
  perform pg_temp.equal(pg_temp.sms('in-1', '+250788100001', 'Change budget to 250k', 5, 61), '{"decision": "duplicate"}'::jsonb, 'delivered twice');
  perform pg_temp.equal(pg_temp.sms('in-1', '+250788100001', 'Change budget to 250k', 4, 61) ->> 'turn_id', v_turn ->> 'turn_id', 'the same token again');
  perform pg_temp.equal(pg_temp.sms('in-2', '+250788100001', 'and near a school', 6, 62), '{"decision": "stored"}'::jsonb, 'while we answer');
  v_result := pg_temp.finish(v_turn, 4, 63, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('accepted', 63))));
  assert (v_result ->> 'more')::boolean, 'the second message waits';
  perform pg_temp.equal(pg_temp.finish(v_turn, 4, 64, '[]'), v_result, 'finishing a turn again');
  v_turn := pg_temp.again(v_turn #>> '{session,id}', 7, 64);
  assert v_turn ->> 'decision' = 'go' and v_turn #>> '{messages,0,text}' = 'and near a school' and jsonb_array_length(v_turn -> 'messages') = 1;
  perform pg_temp.equal((select jsonb_agg(h ->> 'text') from jsonb_array_elements(v_turn -> 'history') h),
    '["summary", "Change budget to 250k", "answer"]'::jsonb, 'history in order');
  v_result := pg_temp.finish(v_turn, 7, 65, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('accepted', 65))));
  assert not (v_result ->> 'more')::boolean;
  perform pg_temp.equal(pg_temp.again(v_turn #>> '{session,id}', 8, 66), '{"decision": "nothing"}'::jsonb, 'all answered');
  assert (select last_intent = 'budget' and last_agent_id is not null and active_channels = '{voice,sms}' from public.omnichannel_sessions
           where id = (v_turn #>> '{session,id}')::uuid);
  assert (select count(*) = 2 from public.message_delivery_log where direction = 'inbound' and status = 'delivered');
  assert (select bool_and(queued_at is not null and sending_at is not null and sent_at is not null) from public.message_delivery_log where direction = 'outbound');
end
$$;

do $$
begin
  perform pg_temp.call('anonymous', 'anonymous');
  perform pg_temp.equal(pg_temp.notify('anonymous', 1, 0), '{"decision": "no_recipient"}'::jsonb, 'a caller without a number');
  perform pg_temp.equal(pg_temp.notify('anonymous', 1, 0), '{"decision": "no_recipient"}'::jsonb, 'the same token');
  perform pg_temp.equal(pg_temp.notify('anonymous', 2, 0) ->> 'status', 'no_recipient', 'and for good');
  perform pg_temp.equal(public.notification_status('{"correlation_id": "corr-anonymous"}') ->> 'status', 'no_recipient', 'as its status says');
end
$$;

-- Nobody could be told, and then somebody names a number
do $$
declare
  v_claim jsonb;
begin
  perform pg_temp.call('named-later', 'anonymous');
  perform pg_temp.equal(pg_temp.notify('named-later', 1, 0) ->> 'decision', 'no_recipient', 'nobody');
  v_claim := pg_temp.notify('named-later', 2, 60, '+250788100099', 'corr-named-now');
  assert v_claim ->> 'decision' = 'go' and v_claim #>> '{profile,phone_number}' = '+250788100099' and v_claim ->> 'correlation_id' = 'corr-named-now', v_claim;
  perform pg_temp.equal(pg_temp.notify('named-later', 3, 61, '+250788100099', 'corr-third') ->> 'decision', 'busy', 'it is being worked on');
  perform pg_temp.finish(v_claim, 2, 62, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 62))));
  perform pg_temp.equal(pg_temp.notify('named-later', 4, 63, '+250788100098', 'corr-fourth') ->> 'status', 'done', 'told once');
  perform pg_temp.equal(public.notification_status('{"correlation_id": "corr-named-now"}') ->> 'status', 'done', 'as its status says');
  -- The call's own row may be completed late as well.
  perform pg_temp.call('completed-later', 'anonymous');
  perform pg_temp.equal(pg_temp.notify('completed-later', 1, 0) ->> 'decision', 'no_recipient', 'nobody');
  update public.voice_calls set from_number = '+250788100097' where provider_call_id = 'completed-later';
  perform pg_temp.equal(pg_temp.notify('completed-later', 2, 60) #>> '{profile,phone_number}', '+250788100097', 'the caller after all');
end
$$;

-- Profiles by reference: profiles.id, user_id, and the number that somebody else owns
do $$
declare
  v_profile uuid; v_user uuid := gen_random_uuid(); v_claim jsonb;
begin
  insert into public.profiles (user_id, phone_number) values (v_user, '+250788100002') returning id into v_profile;
  perform pg_temp.call('by-user', '+250788999999');
  v_claim := public.begin_call_notification(jsonb_build_object('correlation_id', 'u', 'call_ref', 'by-user', 'profile_ref', v_user, 'lease_token', pg_temp.token(1)));
  assert v_claim #>> '{profile,id}' = v_profile::text and v_claim #>> '{profile,phone_number}' = '+250788100002', v_claim -> 'profile';
  perform pg_temp.call('by-both', '+250788999999');
  v_claim := public.begin_call_notification(jsonb_build_object('correlation_id', 'b', 'call_ref', 'by-both', 'profile_ref', v_profile,
    'phone_number', '+250788100003', 'lease_token', pg_temp.token(1)));
  assert v_claim #>> '{profile,id}' = v_profile::text and v_claim #>> '{profile,phone_number}' = '+250788100003', 'a second number of the same person';
  perform pg_temp.equal(pg_temp.sms('from-a-second-number', '+250788100003', 'hi', 1, 0) #>> '{profile,id}', v_profile::text, 'the second number is known');
end
$$;

-- Crashes --------------------------------------------------------------------------------------------------------------

do $$
declare
  v_first jsonb; v_second jsonb; v_done jsonb;
begin
  perform pg_temp.call('crash', '+250788200001');
  v_first := pg_temp.notify('crash', 1, 0);
  perform pg_temp.equal(pg_temp.notify('crash', 2, 61), '{"decision": "wait_unknown", "retry_after_s": 119}'::jsonb, 'the lease ran out: it may have been sent');
  v_second := pg_temp.notify('crash', 2, 181);
  assert v_second ->> 'decision' = 'go' and (v_second ->> 'possible_duplicate')::boolean and v_second ->> 'attempt' = '2' and (v_second ->> 'resumed')::boolean;
  perform pg_temp.equal(v_second -> 'delivery_ids', v_first -> 'delivery_ids', 'the same ids');
  -- The first holder was only slow: what it sent is recorded, and the second's as well.
  v_done := pg_temp.finish(v_first, 1, 182, jsonb_build_array(pg_temp.delivery(v_first, 'sms', pg_temp.attempt('accepted', 59))));
  perform pg_temp.equal(v_done ->> 'status', 'done', 'a late result counts');
  v_done := pg_temp.finish(v_second, 2, 183, jsonb_build_array(pg_temp.delivery(v_second, 'sms', pg_temp.attempt('retryable', 183, '{"error_code": "3000"}'))));
  perform pg_temp.equal(pg_temp.status(v_first -> 'delivery_ids' ->> 'sms'), 'expired', 'fold: the second sending gave up at once (no next attempt)');
  perform pg_temp.equal((select count(*)::integer from public.message_delivery_attempts where delivery_id = (v_first -> 'delivery_ids' ->> 'sms')::uuid), 2, 'both attempts');
  perform pg_temp.equal((select count(*)::integer from public.conversation_messages where kind = 'call_summary' and correlation_id = 'corr-crash'), 1, 'one message');
  begin
    perform pg_temp.finish(v_first, 99, 184, '[]');
    assert false, 'a stranger finished';
  exception when sqlstate 'PT409' then null;
  end;
end
$$;

do $$
declare
  v_claim jsonb;
begin
  -- A report during the wait shows that it was sent: nobody sends again.
  perform pg_temp.call('evidence', '+250788200002');
  v_claim := pg_temp.notify('evidence', 1, 0);
  perform pg_temp.equal(pg_temp.report(70, jsonb_build_object('delivery_ref', upper(v_claim -> 'delivery_ids' ->> 'sms'), 'status', 'delivered')) ->> 'orphaned', '1', 'an orphan');
  perform pg_temp.equal(pg_temp.notify('evidence', 2, 75), '{"decision": "duplicate", "correlation_id": "corr-evidence", "status": "done"}'::jsonb, 'it was carried');
  perform pg_temp.equal(pg_temp.status(v_claim -> 'delivery_ids' ->> 'sms'), 'delivered', 'the row was made from the report');
  assert (select delivery_id is not null from public.message_status_events where delivery_ref = v_claim -> 'delivery_ids' ->> 'sms' and source = 'provider');
  -- Its holder wakes up after all.
  perform pg_temp.finish(v_claim, 1, 80, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 58))));
  assert (select status = 'delivered' and content = 'text' and sent_at is not null from public.message_delivery_log where id = (v_claim -> 'delivery_ids' ->> 'sms')::uuid);
end
$$;

do $$
declare
  v_claim jsonb;
begin
  perform pg_temp.call('twice', '+250788200003');
  v_claim := pg_temp.notify('twice', 1, 0);
  perform pg_temp.notify('twice', 2, 200);
  perform pg_temp.equal(pg_temp.notify('twice', 3, 270) ->> 'decision', 'wait_unknown', 'crashed again');
  perform pg_temp.equal(pg_temp.notify('twice', 3, 400), '{"decision": "duplicate", "correlation_id": "corr-twice", "status": "unknown"}'::jsonb, 'no third time');
  assert exists (select from public.dead_letters where queue = 'post-call-notify' and reason = 'crashed_twice');
  assert exists (select from public.alerts where kind = 'dead_letter');
  perform pg_temp.report(500, jsonb_build_object('delivery_ref', v_claim -> 'delivery_ids' ->> 'whatsapp', 'status', 'read', 'provider', 'whatsapp'));
  perform pg_temp.equal((select status from public.call_notifications where correlation_id = 'corr-twice'), 'done', 'a late report settles it');
  perform pg_temp.equal((select has_whatsapp from public.profiles where phone_number = '+250788200003'), true, 'and proves WhatsApp');
end
$$;

do $$
declare
  v_one jsonb; v_two jsonb; v_session text;
begin
  v_one := pg_temp.sms('crash-1', '+250788200004', 'one', 1, 0);
  v_session := v_one #>> '{session,id}';
  perform pg_temp.equal(pg_temp.sms('crash-1', '+250788200004', 'one', 2, 30) ->> 'decision', 'duplicate', 'live lease');
  perform pg_temp.equal(pg_temp.sms('crash-1', '+250788200004', 'one', 2, 61), '{"decision": "wait_unknown", "retry_after_s": 119}'::jsonb, 'expired lease');
  perform pg_temp.equal(pg_temp.sms('crash-2', '+250788200004', 'two', 3, 62) ->> 'decision', 'wait_unknown', 'a new message waits as well');
  perform pg_temp.equal(pg_temp.again(v_session, 4, 62) ->> 'decision', 'wait_unknown', 'and the sweeper');
  v_two := pg_temp.sms('crash-2', '+250788200004', 'two', 3, 190);
  assert v_two ->> 'decision' = 'go' and v_two ->> 'turn_id' = v_one ->> 'turn_id' and jsonb_array_length(v_two -> 'messages') = 2 and v_two ->> 'attempt' = '2', v_two;
  -- Second crash: given up, but what came after it is answered.
  perform pg_temp.equal(pg_temp.sms('crash-3', '+250788200004', 'three', 5, 191) ->> 'decision', 'stored', 'under the second lease');
  v_one := pg_temp.again(v_session, 6, 400);
  assert v_one ->> 'decision' = 'go' and v_one #>> '{messages,0,text}' = 'three' and v_one ->> 'turn_id' <> v_two ->> 'turn_id', v_one;
  assert (select count(*) = 2 from public.conversation_messages where turn_id = (v_two ->> 'turn_id')::uuid and handled_as = 'unknown');
  assert exists (select from public.dead_letters where queue = 'sms-inbound' and reason = 'crashed_twice');
  -- Its lease expires too, but a report says that it was sent.
  perform pg_temp.report(470, jsonb_build_object('delivery_ref', v_one -> 'delivery_ids' ->> 'sms', 'status', 'sent'));
  perform pg_temp.equal(pg_temp.again(v_session, 7, 471), '{"decision": "nothing"}'::jsonb, 'answered by the one that crashed');
  perform pg_temp.equal((select status from public.conversation_turns where id = (v_one ->> 'turn_id')::uuid), 'answered', 'the turn');
end
$$;

do $$
declare
  v_turn jsonb; v_again jsonb; v_result jsonb;
begin
  -- Given back: the model was down. The same turn again, no duplicate to fear.
  v_turn := pg_temp.sms('release-1', '+250788200005', 'hello', 1, 0);
  v_result := pg_temp.finish(v_turn, 1, 5, '[]', jsonb_build_object('outcome', 'released', 'next_attempt_at', pg_temp.at(15), 'reply', null,
    'providers', '[{"provider": "openai", "outcome": "retryable", "class": "retryable"}]'::jsonb));
  perform pg_temp.equal(v_result ->> 'status', 'released', 'given back');
  perform pg_temp.equal(pg_temp.sms('release-1', '+250788200005', 'hello', 2, 6), '{"decision": "busy", "retry_after_s": 9}'::jsonb, 'not yet');
  v_again := pg_temp.sms('release-1', '+250788200005', 'hello', 2, 16);
  assert v_again ->> 'decision' = 'go' and v_again ->> 'claims' = '2' and v_again ->> 'attempt' = '1' and not (v_again ->> 'possible_duplicate')::boolean;
  perform pg_temp.equal(v_again -> 'delivery_ids', v_turn -> 'delivery_ids', 'the same ids');
  perform pg_temp.finish(v_again, 2, 17, '[]', jsonb_build_object('outcome', 'released', 'next_attempt_at', pg_temp.at(100), 'reply', null));
  v_again := pg_temp.sms('release-2', '+250788200005', 'are you there?', 3, 20);
  assert v_again ->> 'decision' = 'go' and jsonb_array_length(v_again -> 'messages') = 2, 'a new message does not wait for the pause';
end
$$;

-- Reports: order, orphans, spelling -------------------------------------------------------------------------------------

do $$
declare
  v_statuses text[] := array['sent', 'delivered', 'failed', 'read', 'undeliverable'];
  v_order integer[]; v_id uuid; v_first record; v_row record; v_count integer := 0;
begin
  -- Every order of five reports, each of them twice, gives the same row.
  for v_order in
    select array[a, b, c, d, e] from generate_series(1, 5) a, generate_series(1, 5) b, generate_series(1, 5) c, generate_series(1, 5) d, generate_series(1, 5) e
     where (select count(distinct x) from unnest(array[a, b, c, d, e]) x) = 5
  loop
    insert into public.message_delivery_log (channel, provider, status) values ('sms', 'mtn', 'queued') returning id into v_id;
    for i in 1 .. 5 loop
      for twice in 1 .. 2 loop
        perform pg_temp.report(100 + v_order[i], jsonb_build_object('delivery_ref', v_id, 'status', v_statuses[v_order[i]],
          'error_code', case when v_statuses[v_order[i]] in ('failed', 'undeliverable') then 'E' || v_order[i] end,
          'error_class', case when v_statuses[v_order[i]] in ('failed', 'undeliverable') then 'permanent' end));
      end loop;
    end loop;
    select status, status_at, error_code, error_class, sent_at, delivered_at, failed_at, read_at into v_row from public.message_delivery_log where id = v_id;
    if v_first is null then
      v_first := v_row;
    end if;
    assert v_row = v_first, format('order %s gave %s, the first %s', v_order, v_row, v_first);
    v_count := v_count + 1;
  end loop;
  assert v_count = 120 and v_first.status = 'read' and v_first.error_code = 'E3' and v_first.failed_at = pg_temp.at(103), v_first;
end
$$;

do $$
declare
  v_claim jsonb; v_sms text;
begin
  -- A report between the provider's acceptance and our recording of it.
  v_claim := pg_temp.sms('orphan-1', '+250788300001', 'hi', 1, 0);
  v_sms := v_claim -> 'delivery_ids' ->> 'sms';
  perform pg_temp.report(2, '{"provider_message_id": "00aB12F9", "status": "delivered"}');
  perform pg_temp.report(1, '{"provider_message_id": "aB12F9", "status": "sent"}');
  perform pg_temp.finish(v_claim, 1, 3, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 3, '{"provider_message_id": "AB12F9"}'))));
  perform pg_temp.equal(pg_temp.status(v_sms), 'delivered', 'the orphan found its message');
  assert not exists (select from public.message_status_events where delivery_id is null and provider_message_id like '%12F9');

  -- Hex answered, decimal reported.
  v_claim := pg_temp.sms('orphan-2', '+250788300001', 'hi', 2, 10);
  perform pg_temp.finish(v_claim, 2, 11, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 11, '{"provider_message_id": "5A1B2C3D"}'))));
  perform pg_temp.equal(pg_temp.report(12, jsonb_build_object('provider_message_id', x'5A1B2C3D'::bigint::text, 'status', 'delivered')) ->> 'applied', '1', 'decimal of a hex id');
  perform pg_temp.equal(pg_temp.status(v_claim -> 'delivery_ids' ->> 'sms'), 'delivered', 'found');
  -- Decimal answered, hex reported first.
  v_claim := pg_temp.sms('orphan-3', '+250788300001', 'hi', 3, 20);
  perform pg_temp.report(21, jsonb_build_object('provider_message_id', to_hex(987654321::bigint), 'status', 'delivered'));
  perform pg_temp.finish(v_claim, 3, 22, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 22, '{"provider_message_id": "0987654321"}'))));
  perform pg_temp.equal(pg_temp.status(v_claim -> 'delivery_ids' ->> 'sms'), 'delivered', 'found');
  perform pg_temp.equal(pg_temp.report(23, '{"provider_message_id": "10", "status": "delivered"}') ->> 'orphaned', '1', 'short ids are not guessed at');
  -- An id that names two messages costs neither its result.
  v_claim := pg_temp.sms('orphan-4', '+250788300001', 'hi', 4, 30);
  perform pg_temp.finish(v_claim, 4, 31, jsonb_build_array(pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('accepted', 31, '{"provider_message_id": "5A1B2C3D"}'))));
  perform pg_temp.equal(pg_temp.status(v_claim -> 'delivery_ids' ->> 'sms'), 'sent', 'a reused id');
  perform pg_temp.equal(pg_temp.report(32, '{"status": "nonsense", "provider_message_id": "5A1B2C3D"}') ->> 'ignored', '1', 'a status we do not know');
end
$$;

-- Fallback --------------------------------------------------------------------------------------------------------------

create function pg_temp.summary_over(p_ref text, p_phone text, p_token integer, p_sms jsonb, p_whatsapp jsonb) returns jsonb language plpgsql as $$
declare
  v_claim jsonb; v_deliveries jsonb := '[]'; v_done jsonb;
begin
  perform pg_temp.call(p_ref, p_phone);
  v_claim := pg_temp.notify(p_ref, p_token, 0);
  if p_sms is not null then
    v_deliveries := v_deliveries || pg_temp.delivery(v_claim, 'sms', p_sms);
  end if;
  if p_whatsapp is not null then
    v_deliveries := v_deliveries || pg_temp.delivery(v_claim, 'whatsapp', p_whatsapp);
  end if;
  v_done := pg_temp.finish(v_claim, p_token, 1, v_deliveries);
  return v_claim || jsonb_build_object('done', v_done, 'sms', v_claim -> 'delivery_ids' ->> 'sms', 'whatsapp', v_claim -> 'delivery_ids' ->> 'whatsapp');
end
$$;

do $$
declare
  v_work jsonb; v_fallback jsonb; v_due jsonb;
begin
  v_work := pg_temp.summary_over('fallback-1', '+250788400001', 1, null,
    pg_temp.attempt('permanent', 1, '{"error_code": "131026", "evidence": "not_on_whatsapp"}'));
  perform pg_temp.equal(pg_temp.status(v_work ->> 'whatsapp'), 'undeliverable', 'not on WhatsApp');
  v_fallback := v_work #> '{done,fallbacks,0}';
  perform pg_temp.equal(v_fallback ->> 'channel', 'sms', 'SMS steps in');
  assert (select not has_whatsapp and has_whatsapp_source = 'not_on_whatsapp' from public.profiles where phone_number = '+250788400001');
  v_due := pg_temp.due(2, 2, jsonb_build_object('delivery_id', v_fallback ->> 'id'));
  assert v_due #>> '{deliveries,0,id}' = v_fallback ->> 'id' and v_due #>> '{deliveries,0,payload,text}' = 'summary'
     and v_due #>> '{deliveries,0,recipient}' = '+250788400001' and v_due #>> '{deliveries,0,attempt}' = '1', v_due;
  perform pg_temp.equal(pg_temp.due(2, 3) #>> '{deliveries,0,id}', v_fallback ->> 'id', 'the same token claims the same');
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(3, 3) -> 'deliveries'), 0, 'another finds nothing');
  perform pg_temp.results(2, 4, v_fallback ->> 'id', pg_temp.attempt('accepted', 4));
  perform pg_temp.equal(pg_temp.status(v_fallback ->> 'id'), 'sent', 'sent over SMS');
  perform pg_temp.equal(jsonb_array_length(pg_temp.results(2, 5, v_fallback ->> 'id', pg_temp.attempt('accepted', 4)) -> 'fallbacks'), 0, 'recorded twice');

  -- Both were sent, WhatsApp fails later: SMS carries already.
  v_work := pg_temp.summary_over('fallback-2', '+250788400002', 1, pg_temp.attempt('accepted', 1), pg_temp.attempt('accepted', 1, '{"provider_message_id": "wamid.2"}'));
  perform pg_temp.equal(pg_temp.report(5, '{"provider": "whatsapp", "provider_message_id": "wamid.2", "status": "failed", "error_code": "131026", "error_class": "permanent", "evidence": "not_on_whatsapp"}')
    -> 'fallbacks', '[]'::jsonb, 'nothing to step in for');
  -- Only WhatsApp was sent and fails later.
  v_work := pg_temp.summary_over('fallback-3', '+250788400003', 1, null, pg_temp.attempt('accepted', 1, '{"provider_message_id": "wamid.3"}'));
  v_fallback := pg_temp.report(5, '{"provider": "whatsapp", "provider_message_id": "wamid.3", "status": "failed", "error_code": "131026", "error_class": "permanent", "evidence": "not_on_whatsapp"}') -> 'fallbacks';
  perform pg_temp.equal(v_fallback #>> '{0,channel}', 'sms', 'a late failure');
  perform pg_temp.equal(pg_temp.report(5, '{"provider": "whatsapp", "provider_message_id": "wamid.3", "status": "failed", "error_code": "131026", "error_class": "permanent", "evidence": "not_on_whatsapp"}') -> 'fallbacks',
    v_fallback, 'the same report again names the same fallback');
  assert (select count(*) = 1 from public.message_delivery_log where fallback_of = (v_work ->> 'whatsapp')::uuid);
  -- Opted out of SMS: no fallback.
  perform pg_temp.sms('fallback-stop', '+250788400004', 'STOP', 9, 0, 'stop');
  v_work := pg_temp.summary_over('fallback-4', '+250788400004', 1, null, pg_temp.attempt('permanent', 1, '{"error_code": "131026", "evidence": "not_on_whatsapp"}'));
  perform pg_temp.equal(v_work #> '{done,fallbacks}', '[]'::jsonb, 'STOP is respected');
  -- SMS fails, WhatsApp steps in where it is not known to be impossible.
  v_work := pg_temp.summary_over('fallback-5', '+250788400005', 1, pg_temp.attempt('permanent', 1, '{"error_code": "5000"}'), null);
  perform pg_temp.equal(v_work #>> '{done,fallbacks,0,channel}', 'whatsapp', 'WhatsApp steps in');
  -- Retries that give up hand over as well: after the first attempt, and after a later one.
  v_work := pg_temp.summary_over('fallback-7', '+250788400007', 1, null, pg_temp.attempt('retryable', 1, '{"error_code": "131056", "breaker": false}'));
  perform pg_temp.equal(pg_temp.status(v_work ->> 'whatsapp'), 'expired', 'nothing to wait for');
  perform pg_temp.equal(v_work #>> '{done,fallbacks,0,channel}', 'sms', 'SMS carries what WhatsApp gave up');
  v_work := pg_temp.summary_over('fallback-8', '+250788400008', 1, null,
    pg_temp.attempt('retryable', 1, jsonb_build_object('error_code', '131056', 'breaker', false, 'next_attempt_at', pg_temp.at(20))));
  perform pg_temp.equal(v_work #> '{done,fallbacks}', '[]'::jsonb, 'it will be tried again');
  perform pg_temp.due(3, 21, jsonb_build_object('delivery_id', v_work ->> 'whatsapp'));
  v_fallback := pg_temp.results(3, 22, v_work ->> 'whatsapp', pg_temp.attempt('retryable', 22, '{"attempt": 2, "error_code": "131056", "breaker": false}')) #> '{fallbacks,0}';
  perform pg_temp.equal(pg_temp.status(v_work ->> 'whatsapp'), 'expired', 'the last retry');
  perform pg_temp.equal(v_fallback ->> 'channel', 'sms', 'SMS carries what the last retry gave up');
  -- A bug of ours fails loudly.
  v_work := pg_temp.summary_over('fallback-6', '+250788400006', 1, pg_temp.attempt('bug', 1, '{"error_code": "400"}'), null);
  perform pg_temp.equal(pg_temp.status(v_work ->> 'sms'), 'failed', 'a bug');
  assert exists (select from public.alerts where kind = 'delivery_bug');
  update public.message_delivery_log set next_attempt_at = null;
end
$$;

-- Unknown outcomes -------------------------------------------------------------------------------------------------------

do $$
declare
  v_work jsonb; v_due jsonb;
begin
  -- The other channel carries: left alone for good.
  v_work := pg_temp.summary_over('unknown-1', '+250788500001', 1, pg_temp.attempt('accepted', 1), pg_temp.attempt('unknown', 1, '{"error_code": "timeout"}'));
  perform pg_temp.equal(pg_temp.status(v_work ->> 'whatsapp'), 'unknown', 'nobody knows');
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(2, 60) -> 'deliveries'), 0, 'it waits for word');
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(2, 130) -> 'deliveries'), 0, 'carried');
  assert (select next_attempt_at is null and status = 'unknown' from public.message_delivery_log where id = (v_work ->> 'whatsapp')::uuid);
  -- Not carried, the other channel is free: it steps in.
  v_work := pg_temp.summary_over('unknown-2', '+250788500002', 1, pg_temp.attempt('unknown', 1), null);
  v_due := pg_temp.due(3, 130);
  assert jsonb_array_length(v_due -> 'deliveries') = 1 and v_due #>> '{deliveries,0,channel}' = 'whatsapp' and v_due #>> '{deliveries,0,fallback_of}' = v_work ->> 'sms', v_due;
  perform pg_temp.results(3, 131, v_due #>> '{deliveries,0,id}', pg_temp.attempt('accepted', 131));
  -- No other channel: one resend, marked; its outcome unknown again: final.
  v_work := pg_temp.summary_over('unknown-3', '+250788500003', 1, pg_temp.attempt('unknown', 1), pg_temp.attempt('permanent', 1, '{"error_code": "131026", "evidence": "not_on_whatsapp"}'));
  v_due := pg_temp.due(4, 130);
  assert jsonb_array_length(v_due -> 'deliveries') = 1 and v_due #>> '{deliveries,0,id}' = v_work ->> 'sms' and (v_due #>> '{deliveries,0,possible_duplicate}')::boolean
     and v_due #>> '{deliveries,0,attempt}' = '2', v_due;
  perform pg_temp.results(4, 131, v_work ->> 'sms', pg_temp.attempt('unknown', 131, '{"attempt": 2}'));
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(5, 5000) -> 'deliveries'), 0, 'never a second resend');
  perform pg_temp.report(5001, jsonb_build_object('delivery_ref', v_work ->> 'sms', 'status', 'delivered'));
  perform pg_temp.equal(pg_temp.status(v_work ->> 'sms'), 'delivered', 'a late word settles it');
  -- Both unknown: exactly one is sent again.
  v_work := pg_temp.summary_over('unknown-4', '+250788500004', 1, pg_temp.attempt('unknown', 1), pg_temp.attempt('unknown', 1));
  v_due := pg_temp.due(6, 130);
  perform pg_temp.equal(jsonb_array_length(v_due -> 'deliveries'), 1, 'one of two');
  perform pg_temp.results(6, 131, v_due #>> '{deliveries,0,id}', pg_temp.attempt('accepted', 131, '{"attempt": 2}'));
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(7, 5000) -> 'deliveries'), 0, 'and no more');
  -- Word comes in time.
  v_work := pg_temp.summary_over('unknown-5', '+250788500005', 1, pg_temp.attempt('unknown', 1), null);
  perform pg_temp.report(50, jsonb_build_object('delivery_ref', v_work ->> 'sms', 'status', 'sent'));
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(8, 200) -> 'deliveries'), 0, 'word came');
  -- The deadline passes first: unknown is final.
  v_work := pg_temp.summary_over('unknown-6', '+250788500006', 1, pg_temp.attempt('unknown', 1), null);
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(9, 90000) -> 'deliveries'), 0, 'past its deadline');
  assert (select status = 'unknown' and next_attempt_at is null from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);
end
$$;

-- Retries ----------------------------------------------------------------------------------------------------------------

do $$
declare
  v_work jsonb; v_due jsonb;
begin
  v_work := pg_temp.summary_over('retry-1', '+250788600001', 1, pg_temp.attempt('retryable', 1, jsonb_build_object('error_code', '1013', 'next_attempt_at', pg_temp.at(31))), null);
  assert (select status = 'sending' and next_attempt_at = pg_temp.at(31) and error_code = '1013' from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(2, 30) -> 'deliveries'), 0, 'not yet');
  v_due := pg_temp.due(2, 31);
  perform pg_temp.equal(v_due #>> '{deliveries,0,attempt}', '2', 'the second attempt');
  -- Its holder crashes: from the end of the lease on the outcome is unknown, and is waited for.
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(3, 100) -> 'deliveries'), 0, 'the lease ran out');
  perform pg_temp.equal(pg_temp.status(v_work ->> 'sms'), 'unknown', 'maybe sent');
  -- The crashed one was only slow.
  perform pg_temp.results(2, 101, v_work ->> 'sms', pg_temp.attempt('accepted', 90, '{"attempt": 2, "provider_message_id": "late-1"}'));
  assert (select status = 'sent' and provider_message_id = 'late-1' and next_attempt_at is null from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);

  -- Given up after its deadline.
  v_work := pg_temp.summary_over('retry-2', '+250788600002', 1, pg_temp.attempt('retryable', 1, jsonb_build_object('error_code', '1013', 'next_attempt_at', pg_temp.at(31))), null);
  perform pg_temp.equal(jsonb_array_length(pg_temp.due(4, 90000) -> 'deliveries'), 0, 'past the deadline');
  assert (select status = 'expired' and error_code = '1013' and expired_at is not null from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);

  -- A suppressed message is a row with its reason.
  v_work := pg_temp.summary_over('retry-3', '+250788600003', 1, pg_temp.attempt('suppressed', 1, '{"error_reason": "quiet_hours"}'), null);
  assert (select status = 'suppressed' and suppress_reason = 'quiet_hours' and attempts = 0 from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);

  -- Deferred: not tried, due when the pause is over.
  v_work := pg_temp.summary_over('retry-4', '+250788600004', 1, pg_temp.attempt('deferred', 1, jsonb_build_object('next_attempt_at', pg_temp.at(40))), null);
  assert (select status = 'queued' and attempts = 0 and next_attempt_at = pg_temp.at(40) from public.message_delivery_log where id = (v_work ->> 'sms')::uuid);
  v_due := pg_temp.due(5, 41);
  perform pg_temp.equal(v_due #>> '{deliveries,0,attempt}', '1', 'the first attempt');
  perform pg_temp.results(5, 42, v_work ->> 'sms', pg_temp.attempt('deferred', 42, jsonb_build_object('next_attempt_at', pg_temp.at(80))));
  v_due := pg_temp.due(6, 81);
  perform pg_temp.equal(v_due #>> '{deliveries,0,attempt}', '1', 'still the first attempt');
  perform pg_temp.results(6, 82, v_work ->> 'sms', pg_temp.attempt('accepted', 82));
end
$$;

-- Circuit breaker ---------------------------------------------------------------------------------------------------------

create function pg_temp.mtn(p_n integer, p_token integer, p_outcome text, p_at numeric, p_more jsonb default '{}') returns jsonb language plpgsql as $$
declare
  v_turn jsonb := pg_temp.sms('breaker-' || p_n, '+2507887' || lpad(p_n::text, 5, '0'), 'hi', p_token, p_at);
begin
  return pg_temp.finish(v_turn, p_token, p_at, jsonb_build_array(pg_temp.delivery(v_turn, 'sms',
    pg_temp.attempt(p_outcome, p_at, jsonb_build_object('next_attempt_at', case when p_outcome = 'retryable' then pg_temp.at(p_at + 500000) end) || p_more), 900000)));
end
$$;

do $$
declare
  v_turn jsonb; v_work jsonb; v_due jsonb;
begin
  update public.message_delivery_log set next_attempt_at = null;
  for n in 1 .. 4 loop
    perform pg_temp.mtn(n, 100 + n, 'retryable', 1000 + n);
  end loop;
  perform pg_temp.equal((select state from public.provider_health where provider = 'mtn'), 'closed', 'four are too few');
  perform pg_temp.mtn(5, 105, 'permanent', 1005, '{"error_code": "5000"}');
  perform pg_temp.mtn(6, 106, 'retryable', 1005, '{"breaker": false}');
  perform pg_temp.equal((select state from public.provider_health where provider = 'mtn'), 'closed', 'errors of the recipient do not count');
  perform pg_temp.mtn(7, 107, 'unknown', 1006);
  perform pg_temp.equal((select state from public.provider_health where provider = 'mtn'), 'open', 'five of five');
  assert exists (select from public.alerts where kind = 'provider_open' and resolved_at is null);
  v_turn := pg_temp.sms('breaker-open', '+250788790001', 'hi', 110, 1010);
  assert v_turn #>> '{providers,mtn,gate}' = 'open' and (v_turn #>> '{providers,mtn,open_until}')::timestamptz = pg_temp.at(1036), v_turn -> 'providers';
  perform pg_temp.finish(v_turn, 110, 1010, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('deferred', 1010, jsonb_build_object('next_attempt_at', pg_temp.at(1012))), 900000)));
  update public.message_delivery_log set next_attempt_at = null where channel = 'whatsapp';
  v_due := pg_temp.due(111, 1013);
  perform pg_temp.equal(jsonb_array_length(v_due -> 'deliveries'), 0, 'put off while open');
  assert (select next_attempt_at between pg_temp.at(1036) and pg_temp.at(1051) from public.message_delivery_log where id = (v_turn -> 'delivery_ids' ->> 'sms')::uuid);
  -- Half open: one probe, the others still wait.
  v_turn := pg_temp.sms('breaker-probe', '+250788790002', 'hi', 112, 1037);
  perform pg_temp.equal(v_turn #>> '{providers,mtn,gate}', 'probe', 'one may try');
  perform pg_temp.equal(pg_temp.sms('breaker-other', '+250788790003', 'hi', 113, 1038) #>> '{providers,mtn,gate}', 'open', 'one only');
  perform pg_temp.finish(v_turn, 112, 1039, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('retryable', 1039, jsonb_build_object('next_attempt_at', pg_temp.at(600000))), 900000)));
  assert (select state = 'open' and open_until = pg_temp.at(1099) from public.provider_health where provider = 'mtn'), 'a failed probe doubles the pause';
  -- A probe that is not used goes back.
  v_turn := pg_temp.sms('breaker-unused', '+250788790004', 'hi', 114, 1100);
  perform pg_temp.equal(v_turn #>> '{providers,mtn,gate}', 'probe', 'after the pause');
  perform pg_temp.finish(v_turn, 114, 1101, '[]', '{"outcome": "suppressed", "reply": null}');
  v_turn := pg_temp.sms('breaker-good', '+250788790005', 'hi', 115, 1102);
  perform pg_temp.equal(v_turn #>> '{providers,mtn,gate}', 'probe', 'the next may try');
  perform pg_temp.finish(v_turn, 115, 1103, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('accepted', 1103), 900000)));
  assert (select state = 'closed' and open_seconds = 30 from public.provider_health where provider = 'mtn');
  assert not exists (select from public.alerts where kind = 'provider_open' and resolved_at is null);
  perform pg_temp.mtn(8, 118, 'retryable', 1104);
  perform pg_temp.equal((select state from public.provider_health where provider = 'mtn'), 'closed', 'what was before does not count any more');

  -- Wrong credentials: at once, long, with an alert; the message waits.
  v_turn := pg_temp.sms('breaker-config', '+250788790006', 'hi', 120, 2000);
  perform pg_temp.finish(v_turn, 120, 2001, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('config', 2001, '{"error_code": "401"}'), 900000)));
  assert (select state = 'open' and open_until = pg_temp.at(2901) from public.provider_health where provider = 'mtn');
  assert (select status = 'queued' and next_attempt_at = pg_temp.at(2901) from public.message_delivery_log where id = (v_turn -> 'delivery_ids' ->> 'sms')::uuid);
  assert exists (select from public.alerts where kind = 'provider_config' and severity = 'critical');
  -- A template that is not approved: that message failed, SMS carries it, everybody else's WhatsApp goes on.
  v_turn := pg_temp.sms('breaker-template', '+250788790007', 'hi', 123, 2010);
  v_work := pg_temp.finish(v_turn, 123, 2011, jsonb_build_array(pg_temp.delivery(v_turn, 'whatsapp', pg_temp.attempt('config', 2011, '{"error_code": "132001", "breaker": false}'), 900000)));
  perform pg_temp.equal((select status from public.message_delivery_log where id = (v_turn -> 'delivery_ids' ->> 'whatsapp')::uuid), 'failed', 'nobody waits for it');
  perform pg_temp.equal(v_work #>> '{fallbacks,0,channel}', 'sms', 'SMS carries it');
  perform pg_temp.equal((select state from public.provider_health where provider = 'whatsapp'), 'closed', 'a template is not the account');
  assert exists (select from public.alerts where dedupe_key = 'delivery_config:whatsapp:132001' and severity = 'warning');
  perform pg_temp.finish(pg_temp.sms('breaker-model', '+250788790008', 'hi', 124, 2012), 124, 2013, '[]',
    '{"outcome": "released", "providers": [{"provider": "openai", "outcome": "config", "reason": "model_not_found", "breaker": false}]}');
  perform pg_temp.equal((select state from public.provider_health where provider = 'openai'), 'closed', 'one agent''s model is not the account');
  update public.message_delivery_log set next_attempt_at = null where id = (v_work #>> '{fallbacks,0,id}')::uuid;
  -- Mended: the probe is one message of those that are due, then the rest follows.
  v_due := jsonb_build_object('deliveries', (select jsonb_agg(d) from jsonb_array_elements(pg_temp.due(121, 3000) -> 'deliveries') d where d ->> 'provider' = 'mtn'));
  perform pg_temp.equal(jsonb_array_length(v_due -> 'deliveries'), 1, 'one probe is one message');
  perform pg_temp.results(121, 3001, v_due #>> '{deliveries,0,id}', pg_temp.attempt('accepted', 3001, jsonb_build_object('attempt', (v_due #>> '{deliveries,0,attempt}')::integer)));
  perform pg_temp.equal((select state from public.provider_health where provider = 'mtn'), 'closed', 'closed again');
  assert jsonb_array_length(pg_temp.due(122, 3030) -> 'deliveries') >= 1, 'the rest';
  update public.message_delivery_log set next_attempt_at = null, lease_token = null, lease_until = null;
end
$$;

-- STOP, START, HELP; limits -------------------------------------------------------------------------------------------------

create function pg_temp.answer_to(p_id text, p_from text, p_text text, p_keyword text, p_token integer, p_at numeric) returns jsonb language sql as $$
  select public.begin_sms_turn(jsonb_build_object(
    'correlation_id', 'corr-' || p_id, 'provider', 'mtn', 'provider_message_id', p_id, 'from', p_from, 'to', '8080', 'text', p_text,
    'keyword', p_keyword, 'keyword_may_answer', true, 'lease_token', pg_temp.token(p_token), 'now', pg_temp.at(p_at)))
$$;

do $$
declare
  v_turn jsonb; v_stop jsonb;
begin
  v_turn := pg_temp.sms('stop-1', '+250788800001', 'hello', 1, 0);
  v_stop := pg_temp.sms('stop-2', '+250788800001', 'STOP', 2, 1, 'stop');
  assert v_stop ->> 'decision' = 'go' and v_stop ->> 'kind' = 'keyword' and v_stop ->> 'keyword' = 'stop' and not (v_stop #>> '{profile,allows_sms}')::boolean, 'STOP waits for nobody';
  assert (select not allows_sms and allows_sms_source = 'keyword' and allows_sms_at = pg_temp.at(1) from public.profiles where phone_number = '+250788800001');
  perform pg_temp.equal(pg_temp.sms('stop-2', '+250788800001', 'STOP', 3, 2) ->> 'decision', 'duplicate', 'the same STOP again');
  perform pg_temp.finish(v_stop, 2, 3, jsonb_build_array(pg_temp.delivery(v_stop, 'sms', pg_temp.attempt('accepted', 3))));
  perform pg_temp.equal(pg_temp.sms('stop-3', '+250788800001', 'STOP', 4, 4, 'stop'), '{"decision": "opted_out"}'::jsonb, 'a second STOP is not answered');
  -- The conversation that was being answered is not finished by force, but nothing new begins.
  perform pg_temp.finish(v_turn, 1, 5, '[]', '{"outcome": "suppressed", "reply": null}');
  perform pg_temp.equal(pg_temp.sms('stop-4', '+250788800001', 'are you there', 5, 6), '{"decision": "opted_out"}'::jsonb, 'an ordinary message is stored');
  assert exists (select from public.conversation_messages where provider_message_id = 'stop-4' and handled_as = 'opted_out');
  v_stop := pg_temp.sms('stop-5', '+250788800001', 'HELP', 6, 7, 'help');
  perform pg_temp.equal(v_stop ->> 'kind', 'keyword', 'HELP is answered all the same');
  v_stop := pg_temp.sms('stop-6', '+250788800001', 'START', 7, 8, 'start');
  assert v_stop ->> 'keyword' = 'start' and (v_stop #>> '{profile,allows_sms}')::boolean;
  perform pg_temp.equal(pg_temp.sms('stop-7', '+250788800001', 'hello again', 8, 9) ->> 'decision', 'go', 'after START');
  assert not exists (select from public.conversation_turns t join public.conversation_messages m on m.turn_id = t.id where t.kind = 'conversation' and m.kind = 'keyword');
  -- CANCEL, END, REMOVE and YES answer the agent while its question stands, and are keywords when it does not.
  v_turn := pg_temp.answer_to('cancel-1', '+250788800005', 'CANCEL', 'stop', 20, 0);
  assert v_turn ->> 'kind' = 'keyword' and not (v_turn #>> '{profile,allows_sms}')::boolean, 'nobody asked';
  perform pg_temp.finish(v_turn, 20, 0, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('accepted', 0))));
  v_turn := pg_temp.answer_to('cancel-2', '+250788800005', 'YES', 'start', 21, 1);
  assert v_turn ->> 'keyword' = 'start' and (v_turn #>> '{profile,allows_sms}')::boolean, 'YES brings back whoever opted out';
  perform pg_temp.finish(v_turn, 21, 1, jsonb_build_array(pg_temp.delivery(v_turn, 'sms', pg_temp.attempt('accepted', 1))));
  v_turn := pg_temp.answer_to('cancel-3', '+250788800005', 'YES', 'start', 22, 2);
  perform pg_temp.equal(v_turn ->> 'kind', 'conversation', 'YES is an answer of everybody else');
  perform pg_temp.finish(v_turn, 22, 3, '[]', '{"reply": {"content": "Shall I keep the booking for Friday?", "source": "model"}}');
  v_turn := pg_temp.answer_to('cancel-4', '+250788800005', 'CANCEL', 'stop', 23, 4);
  assert v_turn ->> 'kind' = 'conversation' and (v_turn #>> '{profile,allows_sms}')::boolean, 'CANCEL answers the question';
  perform pg_temp.finish(v_turn, 23, 5, '[]', '{"reply": {"content": "It is cancelled. Is there anything else?", "source": "model"}}');
  v_turn := pg_temp.sms('cancel-4b', '+250788800005', 'no', 28, 5);
  perform pg_temp.finish(v_turn, 28, 5, '[]', '{"reply": {"content": "Good. It is cancelled.", "source": "model"}}');
  assert not private.question_is_open((v_turn #>> '{session,id}')::uuid, pg_temp.at(5)), 'a statement is no question';
  perform pg_temp.equal(pg_temp.sms('cancel-5', '+250788800005', 'STOP', 24, 6, 'stop') ->> 'keyword', 'stop', 'STOP is never an answer');
  perform pg_temp.sms('cancel-6', '+250788800005', 'START', 25, 7, 'start');
  v_turn := pg_temp.sms('cancel-7', '+250788800005', 'hello', 26, 8);
  perform pg_temp.finish(v_turn, 26, 9, '[]', '{"reply": {"content": "Shall I?", "source": "model"}}');
  perform pg_temp.equal(pg_temp.answer_to('cancel-8', '+250788800005', 'CANCEL', 'stop', 27, 90000) ->> 'kind', 'keyword', 'the question is of yesterday');
  -- Two people whose gateway gives their messages the same id.
  perform pg_temp.equal(pg_temp.sms('same-id', '+250788800006', 'hi', 30, 0) ->> 'decision', 'go', 'the first');
  v_turn := pg_temp.sms('same-id', '+250788800007', 'hello', 31, 0);
  assert v_turn ->> 'decision' = 'go' and v_turn #>> '{profile,phone_number}' = '+250788800007', 'another sender, another message';
  perform pg_temp.equal(pg_temp.sms('same-id', '+250788800007', 'hello', 32, 1) ->> 'decision', 'duplicate', 'the same sender, the same message');
  perform pg_temp.equal((select count(*) from public.message_delivery_log where provider_message_id = 'same-id'), 2::bigint, 'both are in the log');
  -- A keyword whose holder crashed is found by the sweeper's claim.
  v_stop := pg_temp.sms('stop-8', '+250788800002', 'STOP', 9, 0, 'stop');
  perform pg_temp.equal(pg_temp.again(v_stop #>> '{session,id}', 10, 30) ->> 'decision', 'nothing', 'it is being answered');
  perform pg_temp.equal(pg_temp.again(v_stop #>> '{session,id}', 10, 61) ->> 'decision', 'wait_unknown', 'crashed');
  v_turn := pg_temp.again(v_stop #>> '{session,id}', 10, 200);
  assert v_turn ->> 'kind' = 'keyword' and v_turn ->> 'turn_id' = v_stop ->> 'turn_id' and (v_turn ->> 'possible_duplicate')::boolean;

  -- Limits; STOP is free.
  perform pg_temp.sms('limit-1', '+250788800003', 'a', 20, 0, null, 2);
  perform pg_temp.sms('limit-2', '+250788800003', 'b', 21, 1, null, 2);
  perform pg_temp.equal(pg_temp.sms('limit-3', '+250788800003', 'c', 22, 2, null, 2), '{"decision": "rate_limited"}'::jsonb, 'one too many');
  perform pg_temp.equal(pg_temp.sms('limit-3', '+250788800003', 'c', 22, 2, null, 2), '{"decision": "duplicate"}'::jsonb, 'and again');
  perform pg_temp.equal(pg_temp.sms('limit-4', '+250788800003', 'STOP', 23, 3, 'stop', 2) ->> 'decision', 'go', 'STOP always works');
  -- Whoever proves nothing chooses the sender: all of them share one limit, and a STOP above it is obeyed without an answer.
  for n in 1 .. 3 loop
    perform pg_temp.equal(public.begin_sms_turn(jsonb_build_object('correlation_id', 'u', 'provider', 'mtn', 'provider_message_id', 'unsigned-' || n,
      'from', '+25078880010' || n, 'to', '8080', 'text', 'a', 'lease_token', pg_temp.token(60 + n), 'unsigned', true, 'unsigned_limit_per_hour', 2,
      'now', pg_temp.at(n))) ->> 'decision', case when n < 3 then 'go' else 'rate_limited' end, 'unsigned ' || n);
  end loop;
  perform pg_temp.equal(public.begin_sms_turn(jsonb_build_object('correlation_id', 'u', 'provider', 'mtn', 'provider_message_id', 'unsigned-stop',
    'from', '+250788800101', 'to', '8080', 'text', 'STOP', 'keyword', 'stop', 'lease_token', pg_temp.token(64), 'unsigned', true,
    'unsigned_limit_per_hour', 2, 'now', pg_temp.at(5))) ->> 'decision', 'rate_limited', 'no answer to it');
  assert (select not allows_sms from public.profiles where phone_number = '+250788800101'), 'but it is obeyed';
  perform pg_temp.equal(pg_temp.sms('signed', '+250788800104', 'a', 65, 6) ->> 'decision', 'go', 'those who prove who they are have their own');
  perform pg_temp.equal(public.take_rate_limit(jsonb_build_object('bucket', 'b', 'limit', 1, 'window_seconds', 60, 'now', pg_temp.at(0))),
    '{"allowed": true, "remaining": 0, "retry_after_s": 0}'::jsonb, 'a bucket');
  perform pg_temp.equal(public.take_rate_limit(jsonb_build_object('bucket', 'b', 'limit', 1, 'window_seconds', 60, 'now', pg_temp.at(15))),
    '{"allowed": false, "remaining": 0, "retry_after_s": 45}'::jsonb, 'an empty bucket');
end
$$;

-- Sessions, numbers, tools ---------------------------------------------------------------------------------------------------

do $$
declare
  v_first jsonb; v_second jsonb; v_client uuid; v_session uuid; v_id uuid;
begin
  v_first := pg_temp.sms('idle-1', '+250788900001', 'hi', 1, 0);
  perform pg_temp.finish(v_first, 1, 1, jsonb_build_array(pg_temp.delivery(v_first, 'sms', pg_temp.attempt('accepted', 1))));
  v_second := pg_temp.sms('idle-2', '+250788900001', 'back again', 2, 73 * 3600);
  assert (v_second #>> '{session,created}')::boolean and v_second #>> '{session,id}' <> v_first #>> '{session,id}';
  assert (select previous_session_id = (v_first #>> '{session,id}')::uuid from public.omnichannel_sessions where id = (v_second #>> '{session,id}')::uuid);
  perform pg_temp.equal((select status from public.omnichannel_sessions where id = (v_first #>> '{session,id}')::uuid), 'expired', 'the old one');

  insert into public.clients (slug, brand) values ('other', 'Other') returning id into v_client;
  insert into public.client_numbers (client_id, channel, address) values (v_client, 'sms', '9090');
  v_first := public.begin_sms_turn(jsonb_build_object('correlation_id', 'c', 'provider', 'mtn', 'provider_message_id', 'client-1', 'from', '+250788900001', 'to', '9090',
    'text', 'hi', 'lease_token', pg_temp.token(3), 'now', pg_temp.at(73 * 3600)));
  assert v_first #>> '{client,slug}' = 'other' and v_first #>> '{session,id}' <> v_second #>> '{session,id}' and v_first #>> '{profile,id}' = v_second #>> '{profile,id}';

  v_session := public.get_or_create_omnichannel_session((v_second #>> '{profile,id}')::uuid, 'whatsapp');
  perform pg_temp.equal(v_session::text, v_second #>> '{session,id}', 'the open session');
  perform pg_temp.equal(public.get_or_create_session((v_second #>> '{profile,id}')::uuid), v_session, 'the alias');
  perform pg_temp.equal(public.update_omnichannel_session_status(v_session, 'follow_up', 'rent'), 'follow_up', 'moved');
  perform pg_temp.equal(public.get_session_context(v_session) #>> '{session,last_intent}', 'rent', 'its context');
  -- A model is told what was said, and nobody's number, name or id; an operator everything.
  update public.profiles set display_name = 'Jeanne Uwase', whatsapp_jid = '250788900001@s.whatsapp.net' where id = (v_second #>> '{profile,id}')::uuid;
  insert into public.profile_identities (profile_id, kind, value) values ((v_second #>> '{profile,id}')::uuid, 'whatsapp_phone', '250788900001');
  assert public.get_session_context(v_session)::text ~ 'Jeanne Uwase' and public.get_session_context(v_session) #>> '{profile,wa_id}' = '250788900001';
  v_first := public.run_agent_tool(jsonb_build_object('session_id', v_session, 'name', 'session_get_context', 'idempotency_key', 'k0'));
  assert v_first::text !~ '250788900001|Jeanne|[0-9a-f]{8}-[0-9a-f]{4}', v_first;
  assert v_first #>> '{result,session,intent}' = 'rent' and v_first #>> '{result,person,allows_sms}' = 'true'
     and v_first #>> '{result,brand}' = 'EasyMO' and jsonb_array_length(v_first #> '{result,messages}') > 0, v_first;
  v_first := public.run_agent_tool(jsonb_build_object('session_id', v_session, 'name', 'session_update_status', 'arguments', '{"status": "closed", "note": "all said"}'::jsonb, 'idempotency_key', 'k1'));
  perform pg_temp.equal(v_first #>> '{result,status}', 'closed', 'by a tool');
  perform pg_temp.equal(public.run_agent_tool(jsonb_build_object('session_id', v_session, 'name', 'session_update_status', 'arguments', '{"status": "closed", "note": "all said"}'::jsonb, 'idempotency_key', 'k1')), v_first, 'once a key');
  perform pg_temp.equal(public.update_status(v_session, 'active'), 'closed', 'closed stays closed');
  perform pg_temp.equal(public.run_agent_tool(jsonb_build_object('session_id', v_session, 'name', 'rm', 'idempotency_key', 'k2')) ->> 'ok', 'false', 'no such tool');
  perform pg_temp.equal(public.check_whatsapp_available(p_phone_number => '+250788900001'), false, 'not known');

  v_id := public.log_message_delivery('sms', p_status => 'sent', p_provider => 'twilio', p_provider_message_id => 'SM1');
  perform pg_temp.equal(public.log_delivery('sms', p_status => 'delivered', p_provider => 'twilio', p_provider_message_id => 'SM1'), v_id, 'the same message');
  perform pg_temp.equal(pg_temp.status(v_id::text), 'delivered', 'its status');
  perform pg_temp.equal(public.health_check() ->> 'ok', 'true', 'health');
end
$$;

-- Sweep ------------------------------------------------------------------------------------------------------------------------

do $$
declare
  v_found jsonb; v_job jsonb; v_call uuid; v_id text;
begin
  update public.message_delivery_log set next_attempt_at = null;
  delete from public.call_notifications;
  delete from public.voice_calls;
  delete from public.conversation_turns;
  update public.conversation_messages set handled_at = now() where handled_at is null;
  v_call := pg_temp.call('swept', '+250788910001', 0);
  perform pg_temp.call('failed-call', '+250788910002', 0);
  update public.voice_calls set status = 'no_answer' where provider_call_id = 'failed-call';
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(30), 'call_grace_seconds', 60)) -> 'notify', '[]'::jsonb, 'within the grace');
  v_found := public.sweep(jsonb_build_object('now', pg_temp.at(90), 'call_grace_seconds', 60)) -> 'notify';
  perform pg_temp.equal(v_found, jsonb_build_array(jsonb_build_object('correlation_id', v_call, 'call_id', v_call, 'phone_number', '+250788910001')), 'an ended call');
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(150))) -> 'notify', '[]'::jsonb, 'asked for once');
  assert jsonb_array_length(public.sweep(jsonb_build_object('now', pg_temp.at(800))) -> 'notify') = 1, 'the request got lost';
  perform pg_temp.notify('swept', 1, 1000);
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(1100))) -> 'notify', '[]'::jsonb, 'being worked');
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(1200))) #>> '{notify,0,correlation_id}', 'corr-swept', 'its holder crashed');
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(1260))) -> 'notify', '[]'::jsonb, 'not every minute');

  perform pg_temp.sms('swept-1', '+250788910003', 'hi', 2, 2000);
  v_found := public.sweep(jsonb_build_object('now', pg_temp.at(2200))) -> 'turns';
  assert jsonb_array_length(v_found) = 1 and v_found #>> '{0,correlation_id}' = 'corr-swept-1', v_found;

  v_job := public.enqueue_job('{"queue": "sms-inbound", "payload": {"v": 1, "body": {"a": 1}}, "reason": "queue_refused", "correlation_id": "j"}');
  perform pg_temp.equal(public.enqueue_job('{"queue": "sms-inbound", "payload": {"v": 1, "body": {"a": 1}}, "reason": "queue_refused", "correlation_id": "j"}'), v_job, 'the same envelope');
  v_found := public.sweep(jsonb_build_object('now', pg_temp.at(3000), 'lease_seconds', 60)) -> 'jobs';
  assert v_found #>> '{0,id}' = v_job ->> 'id' and v_found #>> '{0,payload,body,a}' = '1', v_found;
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(3030))) -> 'jobs', '[]'::jsonb, 'leased');
  perform pg_temp.equal(public.complete_jobs(jsonb_build_object('ids', jsonb_build_array(v_job ->> 'id'))), '{"completed": 1}'::jsonb, 'done');
  perform pg_temp.equal(public.sweep(jsonb_build_object('now', pg_temp.at(3100))) -> 'jobs', '[]'::jsonb, 'gone');

  v_found := public.record_dead_letter('{"queue": "post-call-notify", "message_id": "d1", "payload": {}, "attempts": 5, "reason": "call_not_found", "correlation_id": "corr-nobody-knows"}');
  perform pg_temp.equal(public.record_dead_letter('{"queue": "post-call-notify", "message_id": "d1", "payload": {}, "attempts": 6, "reason": "call_not_found", "correlation_id": "corr-nobody-knows"}'), v_found, 'once');
  perform pg_temp.equal(public.notification_status('{"correlation_id": "corr-nobody-knows"}') ->> 'status', 'failed', 'the request failed');
  assert (select details -> 'tried' ->> 0 = 'call_summaries.id' from public.alerts where dedupe_key = 'dead_letter:post-call-notify:call_not_found');

  insert into public.message_delivery_log (channel, provider, status, next_attempt_at, deadline_at) values ('sms', 'mtn', 'queued', pg_temp.at(4000), pg_temp.at(4010)) returning id::text into v_id;
  v_found := public.sweep(jsonb_build_object('now', pg_temp.at(4005)));
  assert v_found ->> 'due_deliveries' = '1' and v_found ->> 'expired_deliveries' = '0', v_found;
  v_found := public.sweep(jsonb_build_object('now', pg_temp.at(4020)));
  assert v_found ->> 'expired_deliveries' = '1' and v_found ->> 'alerts' = '1', v_found;
  perform pg_temp.equal(pg_temp.status(v_id), 'expired', 'past its deadline');
  delete from public.conversation_turns;
  assert (public.sweep(jsonb_build_object('now', pg_temp.at(400000), 'limit', 1000)) ->> 'closed_sessions')::integer > 0;
  assert not exists (select from public.omnichannel_sessions where status in ('active', 'follow_up') and last_activity_at < pg_temp.at(400000) - interval '72 hours');
end
$$;

-- Dead letters, and times that no clock has ----------------------------------------------------------------------------------

do $$
declare
  v_letter jsonb := '{"queue": "post-call-notify", "message_id": "reused", "correlation_id": "reused", "reason": "call_not_found", "attempts": 0}';
  v_first jsonb; v_id uuid;
begin
  v_first := public.record_dead_letter(v_letter || '{"payload": {"call_ref": "one"}}');
  perform pg_temp.equal(public.record_dead_letter(v_letter || '{"payload": {"call_ref": "one"}}'), v_first, 'the same work is one letter');
  assert public.record_dead_letter(v_letter || '{"payload": {"call_ref": "two"}}') <> v_first, 'other work under a reused id is another';
  perform public.record_dead_letter(v_letter || '{"payload": {"call_ref": "two"}}');
  perform pg_temp.equal((select count(*) from public.dead_letters where correlation_id = 'reused'), 2::bigint, 'two letters');
  -- Replayed, and failed again.
  update public.dead_letters set replayed_at = now() where id = (v_first ->> 'id')::uuid;
  update public.alerts set resolved_at = now() where kind = 'dead_letter';
  perform pg_temp.equal(public.record_dead_letter(v_letter || '{"payload": {"call_ref": "one"}}'), v_first, 'the same letter');
  assert (select replayed_at is null from public.dead_letters where id = (v_first ->> 'id')::uuid), 'it is open again';
  assert exists (select from public.alerts where kind = 'dead_letter' and resolved_at is null and details ->> 'dead_letter_id' = v_first ->> 'id'), 'and somebody is told';
  begin
    perform public.record_dead_letter((v_letter || '{"message_id": "absurd"}')::text::jsonb || ('{"payload": {"price": 1e999999}}'::text)::jsonb);
    assert false, 'Postgres holds no such number';
  exception when numeric_value_out_of_range then null;
  end;
  perform public.record_dead_letter(v_letter || jsonb_build_object('message_id', 'absurd', 'payload', '{"price": 1e999999}'::text));
  assert (select jsonb_typeof(payload) = 'string' from public.dead_letters where message_id = 'absurd'), 'as a string it is kept';

  -- The provider's clock is in the year 2040: the same report again is the same report, whenever it arrives.
  for n in 1 .. 2 loop
    perform pg_temp.report(n, jsonb_build_object('provider_message_id', 'future', 'status', 'sent', 'reported_at', '2040-01-01T00:00:00Z'));
  end loop;
  perform pg_temp.equal((select count(*) from public.message_status_events where provider_message_id = 'future'), 1::bigint, 'once');
  assert (select occurred_at = pg_temp.at(1) and reported_at = '2040-01-01T00:00:00Z' from public.message_status_events where provider_message_id = 'future');
end
$$;

-- Append-only, rights ----------------------------------------------------------------------------------------------------------

do $$
declare
  v_what text;
begin
  foreach v_what in array array[
    'update public.message_delivery_attempts set outcome = ''accepted''',
    'delete from public.message_delivery_attempts',
    'update public.message_status_events set status = ''read''',
    'delete from public.message_status_events']
  loop
    begin
      execute v_what;
      assert false, format('%s went through', v_what);
    exception when insufficient_privilege or sqlstate 'PT409' then null;
    end;
  end loop;
end
$$;

reset role;
do $$
declare
  v_table record; v_function record;
begin
  begin
    update public.message_delivery_attempts set outcome = 'accepted';
    assert false, 'the owner changed an attempt';
  exception when sqlstate 'PT409' then null;
  end;
  begin
    update public.message_status_events set status = 'read';
    assert false, 'the owner changed an event';
  exception when sqlstate 'PT409' then null;
  end;
  for v_table in select c.oid, c.relname, c.relrowsecurity from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' loop
    assert v_table.relrowsecurity, format('%s has no row level security', v_table.relname);
    assert exists (select from pg_policy where polrelid = v_table.oid), format('%s has no policy', v_table.relname);
    assert obj_description(v_table.oid) is not null, format('%s has no comment', v_table.relname);
    assert not has_table_privilege('anon', v_table.oid, 'select, insert, update, delete'), format('anon may touch %s', v_table.relname);
    assert not has_table_privilege('authenticated', v_table.oid, 'insert, update, delete'), format('authenticated may change %s', v_table.relname);
    assert has_table_privilege('service_role', v_table.oid, 'select') and has_table_privilege('service_role', v_table.oid, 'insert'), v_table.relname;
  end loop;
  for v_function in select p.oid, p.oid::regprocedure as name, n.nspname, p.proconfig from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private') loop
    assert v_function.proconfig @> array['search_path=""'], format('%s has no search_path', v_function.name);
    assert not has_function_privilege('anon', v_function.oid, 'execute'), format('anon may call %s', v_function.name);
    -- Figures of one's own client are asked for with one's own rights.
    assert v_function.nspname = 'private' or v_function.name::text like 'get_sms_metrics(%' or not has_function_privilege('authenticated', v_function.oid, 'execute'), format('authenticated may call %s', v_function.name);
    assert obj_description(v_function.oid) is not null, format('%s has no comment', v_function.name);
  end loop;
  assert not exists (
    select from pg_constraint c
     where c.contype = 'f' and c.connamespace = 'public'::regnamespace
       and not exists (select from pg_index i where i.indrelid = c.conrelid and i.indkey[0] = c.conkey[1])), 'a foreign key without an index';
end
$$;

-- A signed-in user sees its own rows, a member its client's, nobody else anything.
do $$
declare
  v_user uuid := gen_random_uuid(); v_member uuid := gen_random_uuid(); v_other uuid := gen_random_uuid();
  v_profile uuid; v_client uuid; v_session uuid; v_seen integer;
begin
  insert into public.clients (slug, brand) values ('seen', 'Seen') returning id into v_client;
  insert into public.client_members (client_id, user_id) values (v_client, v_member);
  insert into public.profiles (user_id, phone_number) values (v_user, '+250788920001') returning id into v_profile;
  insert into public.omnichannel_sessions (client_id, profile_id, primary_channel) values (v_client, v_profile, 'sms') returning id into v_session;
  insert into public.message_delivery_log (client_id, session_id, profile_id, channel) values (v_client, v_session, v_profile, 'sms');
  for i in 1 .. 3 loop
    perform set_config('request.jwt.claims', jsonb_build_object('sub', (array[v_user, v_member, v_other])[i], 'role', 'authenticated')::text, true);
    set local role authenticated;
    select (select count(*) from public.profiles) + (select count(*) from public.omnichannel_sessions) + (select count(*) from public.message_delivery_log) into v_seen;
    perform pg_temp.equal(v_seen, case when i < 3 then 3 else 0 end, format('rows seen by user %s', i));
    reset role;
  end loop;
end
$$;

-- Who is told, and who is answered ----------------------------------------------------------------------------------------

do $$
declare
  v_profile uuid; v_claim jsonb; v_row record; v_user uuid := gen_random_uuid();
begin
  -- Trunks and call handlers write numbers as they like.
  for v_row in select * from (values ('250788930001', '+250788930001'), ('0788930002', '+250788930002'), ('+250 788 930 003', '+250788930003'),
                              ('sip:+250788930004@trunk.mtn.rw;user=phone', '+250788930004'), ('00250788930005', '+250788930005'),
                              ('254712345678', '+254712345678')) n(written, meant) loop
    perform pg_temp.call('spelled-' || v_row.written, v_row.written);
    v_claim := pg_temp.notify('spelled-' || v_row.written, 9300, 0);
    perform pg_temp.equal(v_claim #>> '{profile,phone_number}', v_row.meant, 'the number written ' || v_row.written);
  end loop;
  perform pg_temp.call('withheld', 'anonymous');
  perform pg_temp.equal(pg_temp.notify('withheld', 9301, 0) ->> 'decision', 'no_recipient', 'a withheld number');

  -- A profile that has no number of its own is told at the caller's.
  insert into public.profiles (user_id) values (v_user);
  perform pg_temp.call('numberless', '+250788930010');
  v_claim := public.begin_call_notification(jsonb_build_object('correlation_id', 'numberless', 'call_ref', 'numberless', 'profile_ref', v_user,
    'lease_token', pg_temp.token(9302), 'lease_seconds', 60, 'unknown_wait_seconds', 120, 'now', pg_temp.at(0)));
  perform pg_temp.equal(v_claim #>> '{profile,phone_number}', '+250788930010', 'a profile without a number');

  -- Whoever writes from a second number is answered there.
  insert into public.profiles (phone_number) values ('+250788930020') returning id into v_profile;
  insert into public.profile_identities (profile_id, kind, value) values (v_profile, 'phone', '+250788930021');
  v_claim := pg_temp.sms('from-the-other-phone', '+250788930021', 'a private question', 9303, 0);
  perform pg_temp.equal(v_claim ->> 'decision', 'go', 'a second number');
  perform pg_temp.equal(v_claim #>> '{profile,id}', v_profile::text, 'one person, two numbers');
  perform pg_temp.equal(v_claim #>> '{profile,phone_number}', '+250788930021', 'the number that wrote');
end
$$;

-- STOP reaches what was decided before it -------------------------------------------------------------------------------

do $$
declare
  v_claim jsonb; v_stop jsonb; v_id text;
begin
  perform pg_temp.call('stopped', '+250788930030');
  v_claim := pg_temp.notify('stopped', 9310, 0);
  v_id := v_claim #>> '{delivery_ids,sms}';
  perform pg_temp.finish(v_claim, 9310, 1, jsonb_build_array(
    pg_temp.delivery(v_claim, 'sms', pg_temp.attempt('retryable', 1, jsonb_build_object('next_attempt_at', pg_temp.at(60))))));
  v_stop := pg_temp.sms('stop-930030', '+250788930030', 'STOP', 9311, 30, 'stop');
  perform pg_temp.equal(v_stop ->> 'decision', 'go', 'STOP is answered');
  perform pg_temp.finish(v_stop, 9311, 31, jsonb_build_array(
    pg_temp.delivery(v_stop, 'sms', pg_temp.attempt('retryable', 31, jsonb_build_object('next_attempt_at', pg_temp.at(60))), 1800)));
  perform pg_temp.equal((select count(*) from jsonb_array_elements(pg_temp.due(9312, 61) -> 'deliveries') d where d ->> 'id' = v_id), 0::bigint,
    'the summary is not sent after STOP');
  perform pg_temp.equal(pg_temp.status(v_id), 'suppressed', 'and says so');
  perform pg_temp.equal((select suppress_reason from public.message_delivery_log where id = v_id::uuid), 'opted_out', 'and why');
  perform pg_temp.equal((select lease_token is not null from public.message_delivery_log where id = (v_stop #>> '{delivery_ids,sms}')::uuid), true,
    'its confirmation still goes out');
end
$$;

-- A call: opened, told of, ended and told to the caller ----------------------------------------------------------------

do $$
declare
  v_named jsonb := '{"call_sid": "spoken", "from": "+250788930040", "to": "+250788000000", "correlation_id": "invite"}';
  v_open jsonb; v_done jsonb; v_claim jsonb;
begin
  v_open := public.open_voice_call(v_named || jsonb_build_object('model', 'gpt-realtime-2.1', 'locale', 'sw', 'now', pg_temp.at(0)));
  perform pg_temp.equal(v_open ->> 'decision', 'go', 'a call opens');
  perform pg_temp.equal(v_open ->> 'locale', 'sw', 'in its language');
  perform pg_temp.equal(v_open #>> '{agent,slug}', 'call-center', 'with an agent');
  v_done := public.record_voice_events(v_named || jsonb_build_object('now', pg_temp.at(5), 'events', jsonb_build_array(
    '{"seq": 2, "type": "transcript", "role": "user", "text": "Natafuta nyumba"}'::jsonb)));
  perform pg_temp.equal(v_done -> 'gaps', '[[1, 1]]'::jsonb, 'what is missing');
  v_done := public.record_voice_events(v_named || jsonb_build_object('now', pg_temp.at(6), 'events', jsonb_build_array(
    '{"seq": 1, "type": "transcript", "role": "assistant", "text": "Karibu"}'::jsonb, '{"seq": 2, "type": "transcript", "role": "user", "text": "again"}'::jsonb)));
  perform pg_temp.equal(v_done ->> 'stored', '1', 'each once');
  v_done := public.run_voice_tool(v_named || '{"name": "search_services", "idempotency_key": "k", "arguments": {"query": "nyumba"}}');
  perform pg_temp.equal(v_done -> 'ok', 'true'::jsonb, 'a tool');
  v_done := public.end_voice_call(v_named || jsonb_build_object('cause', 'caller_hangup', 'answered_at', pg_temp.at(1), 'now', pg_temp.at(31)));
  perform pg_temp.equal(v_done ->> 'duration_seconds', '30', 'it lasted');
  perform pg_temp.equal(v_done ->> 'correlation_id', 'invite', 'one id');
  perform pg_temp.equal(public.end_voice_call(v_named || '{"cause": "silence"}') ->> 'cause', 'caller_hangup', 'the first end counts');
  v_claim := pg_temp.notify('spoken', 9320, 32);
  perform pg_temp.equal(v_claim ->> 'decision', 'go', 'its summary');
  perform pg_temp.equal(jsonb_array_length(v_claim -> 'transcript'), 2, 'from what was said');
  perform pg_temp.equal(v_claim #>> '{session,id}', v_open #>> '{session,id}', 'in its conversation');
  perform pg_temp.equal(public.report_trunks('{"relay": "r", "trunks": [{"name": "mtn_sip", "status": "active"}]}') ->> 'stored', '1', 'a trunk');
end
$$;

rollback;
\echo smoke: ok
