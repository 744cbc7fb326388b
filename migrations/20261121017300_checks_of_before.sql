-- 20261121017300_checks_of_before.sql
-- Looks at all rows by the checks that 20261121017100 and 20261121017200 added without it, while everybody else goes on.
-- Safe to run again. Locks conversation_turns and conversation_messages against other changes of their shape only. Undo: nothing to undo.
alter table public.conversation_turns validate constraint conversation_turns_keyword_is_known;
alter table public.conversation_messages validate constraint conversation_messages_handled_as_is_known;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121017300'::text $$;

notify pgrst, 'reload schema';
