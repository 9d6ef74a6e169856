/* The places of a sled: who keeps one, who makes room, and what a Connect and an attach number may do. docs/model.md maps
 * it to the code.
 *
 * One sled with a few places and one volume. A thief has the key of a head that held the volume in epoch 1: it opens
 * associations, attaches with ever higher attach numbers, and connects queue ids that exist. Strangers say Connect and no more.
 * The authority's fencer wants in at any moment, with epoch 2 under a key of its own. Credentials of epoch 1 may end.
 *
 * -D of a mutant drops one rule: TRUSTED_FOR_EVER, KEY_UNBOUND, CONNECT_ENDS, NUMBER_ALONE, FENCE_LEAVES.
 */
#define PLACES 5
#define KEY_MAX 2              /* associations of one key */
#define NUMBERS 4

mtype = { free, stranger, session, former };   /* former: it held the volume, and lost it to another association */

#define NOBODY 0
#define THIEF 1
#define FENCER 2

mtype at[PLACES] = free;
byte key[PLACES];              /* whose session it is */
bool once[PLACES];             /* it was attached once */
byte fence_epoch = 1, fence_number;
byte holder = PLACES;          /* the place that holds the volume's pair */
bool over;                     /* credentials of epoch 1 have expired, or their key is retired */
bool refused;                  /* a Connect found no place */
bool displaced;                /* a Connect of a queue id that exists ended something */

#define HOLDS(i) (holder == i && !(over && key[i] == THIEF))
#ifdef TRUSTED_FOR_EVER
#define TRUSTED(i) once[i]
#else
#define TRUSTED(i) HOLDS(i)
#endif

inline leave(i) {
    at[i] = free; key[i] = NOBODY; once[i] = false;
    if :: holder == i -> holder = PLACES :: else fi
}

/* A new association: a free place, else that of a stranger, else of a session that is not trusted. */
inline open() {
    n = 0;
    do :: n < PLACES && at[n] != free -> n++ :: else -> break od;
    if :: n == PLACES -> n = 0; do :: n < PLACES && at[n] != stranger -> n++ :: else -> break od :: else fi;
    if :: n == PLACES -> n = 0; do :: n < PLACES && TRUSTED(n) -> n++ :: else -> break od :: else fi;
    if
    :: n == PLACES -> refused = true
    :: else -> leave(n); at[n] = stranger
    fi
}

/* A session: the key has few associations, so another one of it makes room, the holder last. */
inline prove(i, k) {
    at[i] = session; key[i] = k;
#ifndef KEY_UNBOUND
    n = 0; m = 0;
    do :: n < PLACES -> if :: at[n] != free && key[n] == k -> m++ :: else fi; n++ :: else -> break od;
    if
    :: m > KEY_MAX -> n = 0; do :: n < PLACES && (n == i || key[n] != k || TRUSTED(n)) -> n++ :: else -> break od;
        if :: n < PLACES -> leave(n) :: else fi
    :: else
    fi;
#endif
    n = 0; m = 0;
    do :: n < PLACES -> if :: key[n] == THIEF -> m++ :: else fi; n++ :: else -> break od;
    assert(m <= KEY_MAX)
}

inline attach(i, e, b) {
    if
    :: over && e == 1 -> skip                                  /* the credential is refused */
    :: e < fence_epoch -> skip
    :: e == fence_epoch && b <= fence_number -> skip
#ifndef NUMBER_ALONE
    :: e == fence_epoch && b > fence_number && at[i] == former -> skip   /* no newer credential is issued here */
#endif
    :: else ->
        /* an association that lost the pair to another one of its epoch never has it again under the same credential */
        assert(!(e == fence_epoch && at[i] == former));
        m = holder;
        if :: m < PLACES && m != i -> at[m] = former :: else fi;
#ifndef FENCE_LEAVES
        if
        :: e > fence_epoch -> n = 0;
            do :: n < PLACES -> if :: n != i && n != m && key[n] == THIEF && once[n] -> leave(n) :: else fi; n++ :: else -> break od
        :: else
        fi;
#endif
        fence_epoch = e; fence_number = b; holder = i; once[i] = true;
        if
        :: e == 2 -> n = 0; m = 0;   /* what the fenced head held before is gone, but for the one that is told */
            do :: n < PLACES -> if :: key[n] == THIEF && once[n] -> m++ :: else fi; n++ :: else -> break od;
            assert(m <= 1)
        :: else
        fi
    fi
}

active proctype world() {
    byte i, n, m, b;
    do
    :: atomic { fence_epoch == 1 -> open() }                                          /* a stranger, or the thief */
    :: atomic { select(i : 0 .. 4); if :: at[i] == stranger && fence_epoch == 1 -> prove(i, THIEF) :: else fi }
    :: atomic { select(i : 0 .. 4);
        if :: key[i] == THIEF && fence_number < NUMBERS && fence_epoch == 1 -> b = fence_number + 1; attach(i, 1, b) :: else fi }
    :: atomic { select(i : 0 .. 4);                                                   /* a Connect of its queue id */
        if
        :: at[i] != free ->
#ifdef CONNECT_ENDS
            leave(i); displaced = true
#else
            skip
#endif
        :: else
        fi }
    :: atomic { !over -> over = true }
    :: atomic { fence_epoch == 1 ->                                                   /* the fencer, in one go */
        open();
        assert(!refused);
        i = n; prove(i, FENCER);
        b = 1; attach(i, 2, b);
        assert(holder == i) }
    :: atomic { fence_epoch == 2 -> break }
    od;
    assert(!displaced);
    assert(!refused)
}
