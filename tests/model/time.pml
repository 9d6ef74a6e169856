/* Sled time: a wrong clock does not outlive its repair, and nothing comes back to life while the power is off.
 * docs/model.md maps it to the code.
 *
 * One sled and the authority, times 0 to LAST. Each of the two wall clocks may be FAR ahead for a while, once, and is put
 * right. The sled may be switched off once, and may come back without a clock (no battery). An operator may state the time
 * when clocks are right. A credential is good for TERM; LEAD is what the sled lets an issue time lead its own clock by.
 * Wrong clocks last shorter than what it takes to keep a lead durably.
 *
 * -D of a mutant drops one rule: NO_BOUND, KEPT_AT_ONCE, NO_DOUBT, NOT_STATED, REPLAYED.
 */
#ifndef LAST
#define LAST 8
#endif
#define FAR 30
#define LEAD 1
#define TERM 1

byte world = 2;
byte sled_ahead, authority_ahead;
bool no_battery, off;

byte issue = 2;          /* issue time: falls by a statement only */
byte kept = 2;           /* durable */
byte base = 2;           /* kept at the start, and uptime since */
byte learned;            /* newest issue time, and uptime since */
byte doubt;              /* issued up to here: may be over; 0: none */
byte old_issued;         /* of a credential that somebody keeps; 0: none */
byte stated_at;          /* what the statement said; 0: none yet */
bool taken_back;         /* the statement was taken again, later */

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define CLOCK (world + sled_ahead)
#define HAS_CLOCK (!no_battery && CLOCK + LEAD >= base)
#define OWN MAX(CLOCK, base)

/* sled time */
inline look(now) {
    if
#ifdef NO_BOUND
    :: HAS_CLOCK -> now = OWN; now = MAX(now, learned)
#else
    :: HAS_CLOCK -> now = OWN; if :: learned > now -> now = MIN(learned, now + LEAD) :: else fi
#endif
    :: else -> now = MAX(base, learned)
    fi
}

inline keep() {
    look(n);
    if
#ifndef KEPT_AT_ONCE
    :: HAS_CLOCK -> n = MIN(n, base + LEAD)
#endif
    :: else
    fi;
    kept = MAX(kept, n)
}

inline doubted(t, answer) {
#ifdef NO_DOUBT
    answer = false
#else
    answer = (doubt > 0 && t <= doubt && !HAS_CLOCK)
#endif
}

active proctype rack() {
    byte n, offs, wrongs; bool d;
    do
    :: atomic { world < LAST -> world++; issue++;
        if :: !off -> base++; if :: learned > 0 -> learned++ :: else fi :: else fi }
    :: atomic { wrongs == 0 && stated_at == 0 -> wrongs = 1;
        if :: sled_ahead = FAR :: authority_ahead = FAR :: sled_ahead = FAR; authority_ahead = FAR fi }
    :: atomic { sled_ahead + authority_ahead > 0 -> sled_ahead = 0; authority_ahead = 0 }

    /* the authority issues, the sled learns and keeps */
    :: atomic { !off -> issue = MAX(issue, world + authority_ahead); learned = MAX(learned, issue);
        if :: issue > doubt -> doubt = 0 :: else fi;
        keep() }

    /* with a clock that is right, sled time is right, whatever was wrong before */
    :: atomic { !off && !no_battery && sled_ahead == 0 -> look(n); assert(n <= world + 2 * LEAD) }
    /* without a clock it is right again once an operator has said so */
    :: atomic { !off && stated_at > 0 && sled_ahead + authority_ahead == 0 -> look(n); assert(n <= world + 2 * LEAD) }

    /* somebody keeps a credential of now, and shows it when it is long over */
    :: atomic { !off && old_issued == 0 && issue == world -> old_issued = issue; learned = MAX(learned, issue); keep() }
    :: atomic { !off && old_issued > 0 && !taken_back && world > old_issued + TERM + LEAD && sled_ahead + authority_ahead == 0 ->
        look(n); doubted(old_issued, d); assert(n > old_issued + TERM || d) }

    :: atomic { !off && offs == 0 && wrongs == 0 -> keep(); offs = 1; off = true }
    :: atomic { !off && offs == 0 && wrongs == 1 && sled_ahead + authority_ahead > 0 -> keep(); offs = 2; off = true }
    :: atomic { off -> off = false; base = kept; learned = 0; doubt = kept + LEAD;
        if :: offs == 1 -> no_battery = true :: true fi }

    :: atomic { !off && stated_at == 0 && sled_ahead + authority_ahead == 0 -> stated_at = world; issue = world;
#ifdef NOT_STATED
        learned = learned
#else
        base = world; kept = world; learned = 0; doubt = 0
#endif
        }
    /* an old statement is shown again: its serial was taken */
    :: atomic { !off && stated_at > 0 && !taken_back && world > stated_at + TERM + LEAD ->
#ifdef REPLAYED
        base = stated_at; kept = stated_at; learned = 0; doubt = 0;
        look(n); assert(n + LEAD >= world);
#endif
        taken_back = true }
    od
}
