-- 20261121012150_agents_that_speak.sql
-- What an agent is told for a call, beside what it is told for texts: speech wants other sentences and other tools.
-- Safe to run again (an edited row is kept). Locks ai_agents briefly. Undo: drop the columns and the function.
alter table public.ai_agents add column if not exists voice_instructions jsonb not null default '{}';
alter table public.ai_agents add column if not exists voice_tools jsonb not null default '[]';
do $$
begin
  perform private.require_columns('public.ai_agents', '{"voice_instructions": "jsonb", "voice_tools": "jsonb"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.ai_agents'::regclass and conname = 'ai_agents_voice_instructions_is_object') then
    alter table public.ai_agents add constraint ai_agents_voice_instructions_is_object check (jsonb_typeof(voice_instructions) = 'object');
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.ai_agents'::regclass and conname = 'ai_agents_voice_tools_is_array') then
    alter table public.ai_agents add constraint ai_agents_voice_tools_is_array check (jsonb_typeof(voice_tools) = 'array');
  end if;
end
$$;
comment on column public.ai_agents.voice_instructions is 'Locale -> instructions in a call; one that is missing: English, else those for texts. {brand} becomes the client''s brand.';
comment on column public.ai_agents.voice_tools is 'Names of the tools the agent may use in a call.';

update public.ai_agents set voice_instructions = jsonb_build_object(
  'en', 'You answer the phone for {brand}. Speak English unless the caller speaks another language; then speak theirs. Keep each answer to one or two short spoken sentences, no lists, numbers said slowly. Greet briefly and ask how you can help. Before a search say that you are looking. Tell only what the tools and the notes say: no invented prices, times or promises. If you did not understand, ask once more. If you cannot help, say that a colleague will call back. After the call a summary is sent by message.',
  'fr', 'Vous répondez au téléphone pour {brand}. Parlez français, sauf si la personne parle une autre langue ; parlez alors la sienne. Une ou deux phrases courtes à la fois, sans listes, les chiffres lentement. Saluez brièvement et demandez comment aider. Avant une recherche, dites que vous regardez. Ne dites que ce que donnent les outils et les notes : n''inventez ni prix, ni horaires, ni promesses. Si vous n''avez pas compris, redemandez une fois. Si vous ne pouvez pas aider, dites qu''un collègue rappellera. Après l''appel, un résumé est envoyé par message.',
  'rw', 'Witaba telefone ya {brand}. Vuga Ikinyarwanda, keretse uguhamagaye avuze urundi rurimi; icyo gihe uvuge urwe. Subiza mu nteruro imwe cyangwa ebyiri ngufi, nta rutonde, imibare uyivuge buhoro. Suhuza muri make ubaze icyo wafasha. Mbere yo gushakisha, vuga ko ugiye kureba. Vuga gusa ibyo ibikoresho n''inyandiko bivuga: ntuhimbe ibiciro, amasaha cyangwa amasezerano. Niba utumvise, ongera ubaze rimwe. Niba udashobora gufasha, vuga ko mugenzi wawe azamuhamagara. Nyuma y''ikiganiro, incamake yoherezwa mu butumwa.',
  'sw', 'Unapokea simu kwa niaba ya {brand}. Zungumza Kiswahili, isipokuwa anayepiga akizungumza lugha nyingine; basi zungumza yake. Jibu kwa sentensi moja au mbili fupi, bila orodha, namba polepole. Salimu kwa kifupi na uulize unaweza kusaidiaje. Kabla ya kutafuta, sema kwamba unatazama. Sema tu yaliyo katika zana na kumbukumbu: usibuni bei, nyakati wala ahadi. Usipoelewa, uliza mara moja tena. Ukishindwa kusaidia, sema kwamba mwenzako atampigia. Baada ya simu, muhtasari unatumwa kwa ujumbe.'),
  voice_tools = '["search_services", "remember", "session_get_context", "session_update_status"]'
 where client_id is null and slug = 'call-center' and voice_instructions = '{}';

create or replace function private.voice_agent_json(p_client_id uuid, p_agent_id uuid, p_slug text, p_locale text) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object('id', a.id, 'slug', a.slug, 'tools', a.voice_tools, 'instructions', replace(coalesce(
             a.voice_instructions ->> p_locale, a.voice_instructions ->> 'en', a.instructions ->> p_locale, a.instructions ->> 'en', ''), '{brand}', c.brand))
      from public.ai_agents a join public.clients c on c.id = p_client_id
     where a.is_active and (a.client_id is null or a.client_id = p_client_id) and (a.id = p_agent_id or a.slug in (p_slug, 'call-center'))
     order by (a.id = p_agent_id) desc nulls last, (a.slug = p_slug) desc, a.client_id nulls last
     limit 1);
end
$$;
comment on function private.voice_agent_json is
  'The agent of a call: the one named by id, else by slug, else the call center; its instructions in one language.';
revoke execute on function private.voice_agent_json(uuid, uuid, text, text) from public, anon, authenticated;
grant execute on function private.voice_agent_json(uuid, uuid, text, text) to service_role;
