#!/bin/sh
# Makes the recordings of this folder and of relay/announcements anew. Needs the Debian packages espeak-ng and sox.
# Columns: file, voice of espeak-ng, peak in dBFS, text. Raw A-law at 8 kHz, one channel, no header.
set -eu
cd "$(dirname "$0")/../.."
while IFS='|' read -r file voice peak text; do
    espeak-ng -v "$voice" -s 160 --stdout "$text" |
        sox -t wav - -r 8000 -c 1 -e a-law -t raw "$file" silence 1 0.01 0.5% gain -n "$peak"
done <<'LINES'
tests/speech/caller_question.en.alaw|en-gb+f3|-1|Hello, I want to rent a house in Kimironko, two bedrooms, for three hundred thousand francs a month.
tests/speech/caller_interrupts.en.alaw|en-gb+f3|-1|Wait, sorry! Is there any parking?
tests/speech/caller_thanks.en.alaw|en-gb+f3|-1|Thank you, send me a message. Goodbye.
tests/speech/caller_ride.en.alaw|en-gb+f3|-1|And a moto from Kimironko to the airport, tomorrow at eight.
tests/speech/caller_yes.en.alaw|en-gb+f3|-1|Yes, please.
tests/speech/caller_question.fr.alaw|fr-fr+f3|-1|Bonjour, je cherche une maison à louer à Kimironko, deux chambres.
tests/speech/caller_question.sw.alaw|sw+f3|-1|Habari, natafuta nyumba ya kupanga Kimironko, vyumba viwili.
tests/speech/agent_greeting.en.alaw|en-us|-8|Hello, this is EasyMO. How can I help you?
tests/speech/agent_looking.en.alaw|en-us|-8|One moment, I am looking.
tests/speech/agent_offer.en.alaw|en-us|-8|I found a house in Kimironko. It has two bedrooms and costs three hundred thousand francs a month. It is close to the market, to the school and to the bus, and it has a garden with a wall. You can see it on Saturday in the morning, or on Monday after work.
tests/speech/agent_parking.en.alaw|en-us|-8|Yes, there is parking behind the house. We will send you the details by message.
tests/speech/agent_behind.en.alaw|en-us|-8|Yes, there is parking behind the house.
tests/speech/agent_ride.en.alaw|en-us|-8|A moto from Kimironko to the airport, tomorrow at eight. Shall I book it?
tests/speech/agent_booked.en.alaw|en-us|-8|It is booked. We will send you all of it by message.
tests/speech/agent_nothing.en.alaw|en-us|-8|I am sorry, I found nothing.
tests/speech/agent_not_done.en.alaw|en-us|-8|I am sorry, I could not do it.
tests/speech/agent_greeting.fr.alaw|fr-fr|-8|Bonjour, ici EasyMO. Comment puis-je vous aider ?
tests/speech/agent_greeting.sw.alaw|sw|-8|Habari, hapa ni EasyMO. Nikusaidie nini?
relay/announcements/apology.en.alaw|en-us|-4|We are sorry, we cannot talk right now. We will contact you soon. Goodbye.
relay/announcements/apology.fr.alaw|fr-fr|-4|Nous sommes désolés, nous ne pouvons pas vous parler maintenant. Nous vous recontacterons bientôt. Au revoir.
relay/announcements/apology.sw.alaw|sw|-4|Samahani, hatuwezi kuzungumza sasa. Tutawasiliana nawe hivi karibuni. Kwaheri.
relay/announcements/apology.rw.alaw|sw|-4|Mutubabarire, ntidushobora kuvugana ubu. Turabavugisha vuba. Murabeho.
relay/announcements/consent.en.alaw|en-us|-4|This call is recorded.
relay/announcements/consent.fr.alaw|fr-fr|-4|Cet appel est enregistré.
relay/announcements/consent.sw.alaw|sw|-4|Simu hii inarekodiwa.
relay/announcements/consent.rw.alaw|sw|-4|Iki kiganiro kirafatwa amajwi.
relay/announcements/filler.en.alaw|en-us|-4|One moment, please.
relay/announcements/filler.fr.alaw|fr-fr|-4|Un instant, s'il vous plaît.
relay/announcements/filler.sw.alaw|sw|-4|Subiri kidogo, tafadhali.
relay/announcements/filler.rw.alaw|sw|-4|Mutegereze gato.
LINES
