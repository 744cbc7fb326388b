-- 20261121019050_indexes_of_printed_questions.sql
-- Two questions of docs/sms-tracking.md that read a week, or a month, of everybody's rows to find a few: which have no margin, and who answered
-- after a call. Each has an index that holds these alone.
-- Safe to run again. Builds two indexes on agent_sms and one on agent_calls (on large tables first `migrate --indexes`). Undo: drop them.

-- The margin is in the index of costs already: whatever changes it changes that one too, and a status touches none.
create index if not exists idx_agent_sms_without_margin on public.agent_sms (sent_at desc) where margin is null;
create index if not exists idx_agent_calls_without_margin on public.agent_calls (started_at desc) where margin is null;
create index if not exists idx_agent_sms_after_call on public.agent_sms (sent_at desc, deployment_id) where call_id is not null;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019050'::text $$;

notify pgrst, 'reload schema';
